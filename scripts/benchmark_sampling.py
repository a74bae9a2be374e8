"""Time from labels to images, fast and plain, beside the least time this machine allows.

    python scripts/benchmark_sampling.py [--quick] [--output sampling.json]

Weights are random, and orders are at hand as from an order file. All that stands in one line of
the table is timed in turn. Times drift between runs: only ratios taken in one run count.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from performance import timing
from performance.cost import FORMULA
from performance.generation import Case, Row, measure, random_model
from performance.timing import DTYPES, NAMES, Record
from tokenizers.vq_model import VQModel
from util.errors import run

BATCH_SIZES = {"cpu": [1, 4], "cuda": [1, 8, 64, 256]}
# Title, number format and factor by key.
COLUMNS = timing.COLUMNS | {
    "floor_s": ("floor, ms", ".1f", 1e3),
    "floor_share": ("floor / fast", ".0%", 1),
    "transformer_s": ("transformer, ms", ".1f", 1e3),
    "head_s": ("head + drawing, ms", ".1f", 1e3),
    "vq_s": ("VQ decoder, ms", ".1f", 1e3),
    "products_ratio": ("generation / products", ".2f", 1),
    "packed_products_ratio": ("generation / packed products", ".2f", 1),
    "cold_start_s": ("cold start, s", ".1f", 1),
}
NOTES = f"""\
fast, 95 %: median and 95th percentile, from labels to uint8 images on the device
plain: the same by the readable code; in a quick run in float32 on a CPU once, cold
transformer: what head + drawing and VQ decoder, timed alone, leave of the fast median
generation: the fast median without the VQ decoder; products: its bare matrix products, as nn.Linear
  runs them or (packed) with weights in the fast path's layout
peak: memory of the fast path on a GPU, on a CPU of the process so far
cold start: the first images, with preparation, compilation and capture

{FORMULA}"""


PUBLISHED = (
    Row("lpd_l", 256, 20, 4.8),
    Row("lpd_xl", 256, 20, 4.9),
    Row("lpd_xxl", 256, 20, 5.9),
    Row("lpd_l", 256, 32, 5.4),
    Row("lpd_xl", 256, 32, 5.0),
    Row("lpd_l", 512, 48, 7.3),
    Row("lpd_xl", 512, 48, 6.0),
)
ROWS = {f"{row.model}_{row.image_size}_{row.steps}": row for row in PUBLISHED}


def main(argv: list[str] | None = None) -> None:
    """Measure, show the table and write it."""
    quick = "one row, one image at a time"
    parser = timing.build_parser("from labels to images", ROWS, quick)
    parser.add_argument("--dtype", choices=("bf16", "f32", "both"), help="by default bf16 on a GPU")
    args, effort = timing.read_effort(parser, argv)
    kind = effort.device.type
    dtype = args.dtype or ("bf16" if kind == "cuda" else "both")
    dtypes = ("bf16", "f32") if dtype == "both" else (dtype,)
    sizes = args.batch_sizes or ([1] if args.quick else BATCH_SIZES[kind])
    rows = args.rows or list(ROWS)[: 1 if args.quick else None]
    rated = DTYPES if kind == "cuda" else {*dtypes, "f32"}  # all that the VQ decoder may choose
    rates = timing.measure_rates(effort.device, [DTYPES[name] for name in rated])
    tokenizer = timing.random_weights(VQModel, effort.device)

    def series(name: str, dtype: str) -> Iterator[Record]:
        row = ROWS[name]
        if kind == "cuda":
            torch.compiler.reset()  # the fast path compiles for the sizes of a model
        model = random_model(row, tokenizer, DTYPES[dtype], effort.device)
        once = args.quick and kind == "cpu" and dtype == "f32"  # which is slow
        much = replace(effort, plain_rounds=min(effort.plain_rounds, 1)) if once else effort
        for size in sizes:
            about = {"row": name, **row._asdict(), "dtype": dtype, "batch_size": size}
            yield about | measure(Case(row, model, tokenizer, DTYPES[dtype], size), rates, much)

    named = {f"{name}, {dtype}": series(name, dtype) for name in rows for dtype in dtypes}
    kept = {NAMES[dtype]: rate._asdict() for dtype, rate in rates.items()}
    write = partial(timing.write_figures, args.output, effort.device, rates=kept)
    timing.show(named, COLUMNS, NOTES, write)


if __name__ == "__main__":
    run(main)
