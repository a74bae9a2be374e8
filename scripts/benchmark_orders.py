"""Time per locality-aware order, on one core, beside that of the published release.

    python scripts/benchmark_orders.py [--output orders.json]

Compiling, or reading what an earlier process compiled, is timed apart.
"""

import logging
import statistics
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders
from orders.sources import published_repulsion
from performance import timing
from util.cli import Parser, add_flags, whole
from util.errors import run

logger = logging.getLogger(__name__)

# Image size, steps, and ms per order of the published release, measured on a 2-core CPU machine.
SETTINGS = ((256, 20, 23.5), (256, 32, 31.4), (512, 48, 554.0))
# Title, number format and factor by key.
COLUMNS = {
    "image_size": ("pixels", "d", 1),
    "steps": ("steps", "d", 1),
    "repulsion": ("repulsion", "g", 1),
    "release_ms": ("release, ms", ".1f", 1),
    "median_us": ("median, us", ".1f", 1),
    "ratio": ("times faster", ".0f", 1),
}


def main(argv: list[str] | None = None) -> None:
    """Measure, show the table and write it."""
    parser = Parser(description="Time per locality-aware order, on one core.")
    parser.add_argument("--num_orders", type=whole(1), default=500, help="made at once")
    parser.add_argument("--repeats", type=whole(1), default=31, help="times to make them")
    add_flags(parser, "--output", "--debug")
    args = parser.parse_args(argv)
    cpu = torch.device("cpu")
    timing.write_figures(args.output, cpu)
    start_up = timing.seconds_of(lambda: locality_aware_orders(1, [1], 1), cpu)
    logger.info("the first order took %.2f s: compiling, or reading what was compiled", start_up)
    calls, rows = {}, []
    for image_size, steps, release_ms in SETTINGS:
        side = image_size // 16
        sizes, repulsion = group_sizes(side**2, steps), published_repulsion(side**2, steps)
        orders = (locality_aware_orders, args.num_orders, sizes, side)
        calls[f"{image_size} {steps}"] = partial(*orders, repulsion_threshold=repulsion)
        row = dict(image_size=image_size, steps=steps, repulsion=repulsion, release_ms=release_ms)
        rows.append(row)
    times = timing.time_in_turn(calls, timing.Effort(cpu, args.repeats, seconds=0))
    for row, seconds in zip(rows, times.values(), strict=True):
        row["median_us"] = 1e6 * statistics.median(seconds) / args.num_orders
        row["ratio"] = 1e3 * row["release_ms"] / row["median_us"]
    sys.stdout.write(timing.markdown_table(COLUMNS, rows))
    timing.write_figures(args.output, cpu, start_up_s=start_up, settings=rows)


if __name__ == "__main__":
    run(main)
