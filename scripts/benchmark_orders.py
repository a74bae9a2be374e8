"""Time per locality-aware order, on one core, beside that of the published release.

    python scripts/benchmark_orders.py [--output orders.json]

Compiling, or reading what an earlier process compiled, is timed apart.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders
from orders.sources import published_repulsion
from performance.timing import markdown_table
from util import logs
from util.cli import Parser, add_flags, whole
from util.errors import blame, require_writable_folder, run
from util.files import write_json

logger = logging.getLogger(__name__)

# Image size, steps, and ms per order of the published release, measured on a 2-core CPU machine.
SETTINGS = ((256, 20, 23.5), (256, 32, 31.4), (512, 48, 554.0))
STRIDE = 16
# Title, number format and factor by key.
COLUMNS = {
    "image_size": ("pixels", "d", 1),
    "steps": ("steps", "d", 1),
    "repulsion": ("repulsion", "g", 1),
    "release_ms": ("release, ms", ".1f", 1),
    "median_us": ("median, us", ".1f", 1),
    "best_us": ("best, us", ".1f", 1),
    "ratio": ("times faster", ".0f", 1),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Time per locality-aware order, on one core.")
    parser.add_argument("--num_orders", type=whole(1), default=500, help="made at once")
    parser.add_argument("--repeats", type=whole(1), default=31, help="times to make them")
    add_flags(parser, "--output", "--debug")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Measure, show the table and write it."""
    if args.output is not None:
        require_writable_folder(args.output.parent, "--output")
    start = time.perf_counter()
    locality_aware_orders(1, [1], 1)
    start_up = time.perf_counter() - start
    logger.info("the first order took %.2f s: compiling, or reading what was compiled", start_up)
    bar = logs.progress(SETTINGS, desc="orders", unit="setting")
    rows = [measure(*setting, args.num_orders, args.repeats) for setting in bar]
    sys.stdout.write(markdown_table(COLUMNS, rows))
    if args.output is not None:
        with blame("--output"):
            write_json({"start_up_s": start_up, "settings": rows}, args.output)


def measure(
    image_size: int, steps: int, release_ms: float, num_orders: int, repeats: int
) -> dict[str, float]:
    """The row of a setting: times per order; `ratio` is the release's time over the median."""
    side = image_size // STRIDE
    sizes, repulsion = group_sizes(side**2, steps), published_repulsion(side**2, steps)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        locality_aware_orders(num_orders, sizes, side, repulsion_threshold=repulsion)
        times.append((time.perf_counter() - start) * 1e6 / num_orders)
    median = statistics.median(times)
    return {
        "image_size": image_size,
        "steps": steps,
        "repulsion": repulsion,
        "release_ms": release_ms,
        "median_us": median,
        "best_us": min(times),
        "ratio": release_ms * 1e3 / median,
    }


if __name__ == "__main__":
    logs.setup()
    run(lambda: main(parse_args()))
