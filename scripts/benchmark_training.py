"""Time per training step, as training runs it and as it is plainly written, beside its products.

    python scripts/benchmark_training.py [--quick] [--output training.json]

Weights and tokens are random. All that stands in one line of the table is timed in turn, on the
same batches. Times drift between runs: only ratios taken in one run count.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from models.lpd import LPD, lpd_l, lpd_tiny, lpd_xl, lpd_xxl
from scripts.training_case import (
    FAST_DTYPE,
    MOST_ROUNDS,
    Case,
    Effort,
    Row,
    counted_parameters,
    operations_per_image,
    write_tokens,
)
from util import logs
from util.data.token_cache import open_cache
from util.data.training_data import CachedTokens
from util.errors import run
from util.performance import benchmark
from util.performance.memory import largest_that_fits

logger = logging.getLogger(__name__)

# Of the token cache that steps are fed from, at least.
NUM_IMAGES = 4096

# Title, number format and factor by key.
COLUMNS = {
    "row": ("row", "", 1),
    "batch_size": ("batch", "d", 1),
    "rounds": ("rounds", "d", 1),
    "dtype": ("type", "", 1),
    "fast_s": ("fast, ms", ".1f", 1e3),
    "images_per_s": ("images/s", ".2f", 1),
    "tokens_per_s": ("tokens/s", ".0f", 1),
    "flop_per_s": ("TFLOP/s", ".3g", 1e-12),
    "rate_share": ("of the rate", ".0%", 1),
    "products_share": ("products / fast", ".0%", 1),
    "waiting_share": ("waiting for data", ".2%", 1),
    "peak_bytes": ("peak, GiB", ".2f", 2**-30),
    "plain_dtype": ("plain type", "", 1),
    "plain_s": ("plain, ms", ".1f", 1e3),
    "ratio": ("plain / fast", ".2f", 1),
    "plain_peak_bytes": ("plain peak, GiB", ".2f", 2**-30),
    "first_steps_s": ("first steps, s", ".1f", 1),
}
NOTES = """\
fast: median optimiser step as training runs it: bfloat16 autocast, fused AdamW, on a GPU compiled
  blocks and sparse masks; each step draws its list of group sizes
plain: the same batches and lists; dense masks made at every step, eager, all logits at once,
  PyTorch's own dropout and unfused AdamW
tokens/s: 2N sequence tokens an image, N known ones and N queries
TFLOP/s: by the rule below, which counts the head for all 2N though only N reach it; of the rate:
  over the fastest of large matrix products in the same rounds and type
products: qkv, proj, fc1, fc2 and head alone, forward and backward, for the rows that are needed
waiting for data: share of the fast loop's time that the host asks a token cache for its next batch
peak: on a GPU of one step's network, optimiser and activations, on a CPU of the process so far
first steps: from a new network on, with compilation
"""
FORMULA = "operations of an image = 2N tokens x 6 x (block + head parameters)\n"


DEMO = dict(img_size=32, vqgan_stride=4, vqgan_vocab_size=256, class_num=10)
SMALL_ROWS = (
    Row("lpd_tiny_32", partial(lpd_tiny, **DEMO), 64, steps=12),
    Row("lpd_l_x2_256", partial(LPD, decoder_embed_dim=1024, decoder_depth=2), 8),
)
PUBLISHED_ROWS = (
    Row("lpd_l_256", lpd_l, 64),
    Row("lpd_xl_256", lpd_xl, 32),
    Row("lpd_xxl_256", lpd_xxl, 32),
    Row("lpd_l_512", partial(lpd_l, img_size=512), 16),
    Row("lpd_xl_512", partial(lpd_xl, img_size=512), 8),
)
ROWS = SMALL_ROWS + PUBLISHED_ROWS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    names = [row.name for row in ROWS]
    return benchmark.build_parser(
        "Time per training step, beside what this machine allows.",
        names,
        plain="step",
        quick="the small rows only",
    ).parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Measure, show the table and write it."""
    device = benchmark.choose_device(args.device)
    machine = benchmark.describe_machine(device)
    keep = benchmark.result_file(args.output, machine)
    small = args.quick or device.type == "cpu"
    wanted = args.rows or [row.name for row in (SMALL_ROWS if small else PUBLISHED_ROWS)]
    effort = Effort(
        device=device,
        batch_sizes=args.batch_sizes,
        plain=not args.no_plain,
        rounds=2 if args.quick else 3,
        seconds=min(args.seconds, 3) if args.quick else args.seconds,
    )
    result = measure_rows([row for row in ROWS if row.name in wanted], effort, keep)
    sys.stdout.write(report(result["rows"]))
    logger.info("measured on %s", machine)


def measure_rows(
    rows: Sequence[Row], effort: Effort, keep: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Measure every row at every batch size that fits.

    Args:
        rows: of the table.
        effort: what is measured, and how often.
        keep: gets the result so far after every row; a long run that breaks leaves those.

    Returns:
        `formula` of the operations, and one record per line in `rows`.
    """
    result: dict[str, Any] = {"formula": FORMULA, "rows": []}
    bar = logs.progress(rows, desc="training", unit="row")
    with logs.logging_redirect_tqdm(), tempfile.TemporaryDirectory() as folder:
        for row in bar:
            cache = Path(folder, row.name)
            cache.mkdir()
            batch_sizes = effort.batch_sizes or [row.batch_size]
            write_tokens(cache, row, max(NUM_IMAGES, (MOST_ROUNDS + 1) * max(batch_sizes)))
            source = CachedTokens(open_cache(cache), effort.device)
            result["rows"] += measure_series(row, source, batch_sizes, effort)
            keep(result)
    return result


def measure_series(
    row: Row, source: CachedTokens, batch_sizes: Sequence[int], effort: Effort
) -> list[dict[str, Any]]:
    """One record per batch size; one that does not fit ends the series in one line of the log."""
    records: list[dict[str, Any]] = []

    def measured(batch_size: int, effort: Effort = effort) -> dict[str, Any]:
        names = {"row": row.name, "batch_size": batch_size}
        return names | measure(Case(row, source, batch_size, effort), effort)

    for batch_size in batch_sizes:
        try:
            records.append(measured(batch_size))
        except torch.OutOfMemoryError:
            pass  # what the failed attempt took is free only outside this block
        else:
            continue
        once = replace(effort, rounds=1, seconds=0)
        fits = largest_that_fits(partial(measured, effort=once), batch_size)
        logger.warning(
            "%s: a batch of %d does not fit into the memory of %s, the largest that does is %d",
            *(row.name, batch_size, effort.device, fits),
        )
        break
    return records


def measure(case: Case, effort: Effort) -> dict[str, Any]:
    """The figures of a warm case, and of large products in the same rounds."""
    large = benchmark.large_products(effort.device, FAST_DTYPE)
    times = benchmark.time_in_turn(
        {
            **{name: case.in_turn(name) for name in case.subjects},
            **{name: product for name, (product, _) in large.items()},
        },
        effort.device,
        rounds=(effort.rounds, MOST_ROUNDS),
        seconds=effort.seconds,
    )
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    rate = max(work / median[name] for name, (_, work) in large.items())
    operations = operations_per_image(case.model)
    num_tokens = case.model.grid.num_tokens
    images_per_s = case.batch_size / median["fast"]
    record = {
        "rounds": len(times["fast"]),
        **{f"{name}_s": median[name] for name in case.subjects},
        "images_per_s": images_per_s,
        "tokens_per_s": images_per_s * 2 * num_tokens,
        "flop_per_s": images_per_s * operations,
        "rate_share": images_per_s * operations / rate,
        "products_share": median["products"] / median["fast"],
    }
    if "plain" in median:
        record["ratio"] = median["plain"] / median["fast"]
    counted = {
        "num_tokens": num_tokens,
        "parameters": counted_parameters(case.model),
        "operations_per_image": operations,
        "rate": rate,
    }
    return record | case.record | {"counted": counted, "times_s": times}


def report(records: Sequence[dict[str, Any]]) -> str:
    """The records as a table, what its columns mean, and what an image's operations are."""
    table = benchmark.markdown_table(COLUMNS, records)
    return "\n".join([table, NOTES, FORMULA, *map(operations_line, records), ""])


def operations_line(record: dict[str, Any]) -> str:
    """The formula of the operations with a record's numbers."""
    counted = record["counted"]
    operations, rate = counted["operations_per_image"], counted["rate"]
    return (
        f"{record['row']}, batch {record['batch_size']}: 2 x {counted['num_tokens']} x 6 x "
        f"{counted['parameters'] / 1e6:.4g} M = {operations / 1e12:.3g} TFLOP an image; at "
        f"{rate / 1e12:.3g} TFLOP/s ({record['dtype']}) {rate / operations:.4g} images/s"
    )


if __name__ == "__main__":
    logs.setup()
    run(lambda: main(parse_args()))
