"""Time from labels to images, fast and plain, beside the least time this machine allows.

    python scripts/benchmark_sampling.py [--quick] [--output sampling.json]

Weights are random, and orders are at hand as from an order file. All that stands in one line of
the table is timed in turn. Times drift between runs: only ratios taken in one run count.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.decoding import generate
from models.fast import FastPath
from models.lpd import LPD, MODELS
from models.sampling import SamplingSettings
from orders.group_sizes import group_sizes
from orders.sources import locality_aware
from performance import timing as benchmark
from performance.cost import FORMULA, Rates, Work, decoding_work, step_rows, tokenizer_cost
from performance.timing import DTYPES, NAMES, Calls, Effort, Record, random_weights
from tokenizers.fast_decoder import FastDecoder
from tokenizers.vq_model import VQModel
from util import logs
from util.errors import run
from util.images import to_uint8

BATCH_SIZES = {"cpu": [1, 4], "cuda": [1, 8, 64, 256]}
# Title, number format and factor by key.
COLUMNS = benchmark.COLUMNS | {
    "floor_s": ("floor, ms", ".1f", 1e3),
    "floor_share": ("floor / fast", ".0%", 1),
    "vq_s": ("VQ decoder, ms", ".1f", 1e3),
    "products_ratio": ("generation / products", ".2f", 1),
    "packed_products_ratio": ("generation / packed products", ".2f", 1),
    "cold_start_s": ("cold start, s", ".1f", 1),
}
NOTES = f"""\
fast, 95 %: median and 95th percentile, from labels to uint8 images on the device
generation: the fast median without the VQ decoder; products: its bare matrix products, as nn.Linear
  runs them or (packed) with weights in the fast path's layout
peak: memory of the fast path on a GPU, on a CPU of the process so far
cold start: the first images, with preparation, compilation and capture

{FORMULA}"""


class Row(NamedTuple):
    """One row of the published table; the guidance schedule is linear."""

    model: str  # a key of `MODELS`
    image_size: int  # pixels
    steps: int
    cfg: float


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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    quick = "one row, one image at a time"
    parser = benchmark.build_parser("from labels to images", ROWS, quick)
    parser.add_argument("--dtype", choices=("bf16", "f32", "both"), help="by default bf16 on a GPU")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Measure, show the table and write it."""
    effort = benchmark.read_effort(args)
    kind = effort.device.type
    write = partial(benchmark.write_figures, args.output, effort.device)
    write()
    dtype = args.dtype or ("bf16" if kind == "cuda" else "both")
    dtypes = ("bf16", "f32") if dtype == "both" else (dtype,)
    sizes = args.batch_sizes or ([1] if args.quick else BATCH_SIZES[kind])
    rows = args.rows or list(ROWS)[: 1 if args.quick else None]
    rated = DTYPES if kind == "cuda" else {*dtypes, "f32"}  # all that the VQ decoder may choose
    rates = benchmark.measure_rates(effort.device, [DTYPES[name] for name in rated])
    tokenizer = random_weights(VQModel, effort.device)

    def series(name: str, dtype: str) -> Iterator[Record]:
        row = ROWS[name]
        if kind == "cuda":
            torch.compiler.reset()  # the fast path compiles for the sizes of a model
        model = random_model(row, tokenizer, DTYPES[dtype], effort.device)
        for size in sizes:
            about = {"row": name, **row._asdict(), "dtype": dtype, "batch_size": size}
            yield about | measure(Case(row, model, tokenizer, DTYPES[dtype], size), rates, effort)

    named = {f"{name}, {dtype}": series(name, dtype) for name in rows for dtype in dtypes}
    kept_rates = {NAMES[dtype]: rate._asdict() for dtype, rate in rates.items()}
    benchmark.show(named, COLUMNS, NOTES, partial(write, rates=kept_rates))


def random_model(row: Row, tokenizer: VQModel, dtype: torch.dtype, device: torch.device) -> LPD:
    """Make the network of a row for a tokenizer, its weights rounded as an evaluation does."""
    sizes = dict(vqgan_stride=tokenizer.stride, vqgan_vocab_size=tokenizer.codebook_size)
    model = random_weights(lambda: MODELS[row.model](img_size=row.image_size, **sizes), device)
    return model if dtype == torch.float32 else model.round_products(dtype)


class Case:
    """One line of the table: a model, a type and a number of images."""

    def __init__(
        self, row: Row, model: LPD, tokenizer: VQModel, dtype: torch.dtype, batch_size: int
    ) -> None:
        FastPath.forget(model)  # without what other cases prepared and captured
        self.model, self.tokenizer, self.dtype = model, tokenizer, dtype
        self.device, self.batch_size = model.pos_embed.device, batch_size
        self.settings = SamplingSettings(cfg=row.cfg)
        self.sequences = batch_size * (2 if self.settings.guided else 1)
        self.sizes = group_sizes(model.grid.num_tokens, row.steps)
        self.orders = locality_aware(model.grid, seed=0)(np.arange(batch_size), self.sizes)
        self.labels = torch.arange(batch_size) % model.class_num

    def generate(self, sampler: str) -> Tensor:
        """(B, N) int64 codes on the device."""
        inputs = (self.model, self.labels, self.orders, self.sizes, self.settings)
        autocast = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast):
            return generate(*inputs, sampler=sampler)

    @cached_property
    def tokens(self) -> Tensor:
        """Those of the fast sampler's first call."""
        return self.generate("fast")

    @cached_property
    def decoder(self) -> FastDecoder:
        return FastDecoder(self.tokenizer, self.model.grid.num_tokens)

    def warm_up(self) -> Record:
        """Make the first calls; return what they take."""
        return benchmark.warm_up(lambda: self.decoder(self.tokens), self.device)

    def fast(self) -> Tensor:
        """(B, S, S, 3) uint8 images on the device."""
        return self.decoder(self.generate("fast"))

    @torch.no_grad()
    def plain(self) -> Tensor:
        """As `fast`, by the code that is there to be read."""
        some = self.generate("plain").split(16)  # as many as the fast decoder takes at once
        return torch.cat([to_uint8(self.tokenizer.decode_code(codes)) for codes in some])

    def floor(self, rates: Mapping[torch.dtype, Rates]) -> float:
        """Return the seconds of `FORMULA`."""
        steps = decoding_work(self.model, self.sizes, self.sequences, self.dtype.itemsize)
        dtype = self.decoder.dtype
        one = tokenizer_cost(self.tokenizer, sum(self.sizes), dtype.itemsize)["decoder"]
        vq = Work(one.bytes, self.batch_size * one.operations)  # weights are read once for all
        return sum(step.seconds(rates[self.dtype]) for step in steps) + vq.seconds(rates[dtype])

    def products(self, packed: bool) -> Callable[[], None]:
        """Return what makes all matrix products of a generation, and nothing between them."""
        rows = [
            (self.sequences * (context + queries), self.sequences * queries)
            for context, queries in step_rows(self.sizes)
        ]
        most = max(in_blocks for in_blocks, _ in rows)
        multiply = benchmark.bare_products(self.model, self.dtype, most, packed)

        def generation() -> None:
            for in_blocks, at_head in rows:
                multiply(in_blocks, at_head)

        return generation


@torch.no_grad()
def measure(case: Case, rates: Mapping[torch.dtype, Rates], effort: Effort) -> Record:
    """Warm a case up, and time it and its parts in turn."""
    record = case.warm_up()
    calls: Calls = {"fast": case.fast, "vq": lambda: case.decoder(case.tokens)}
    # What the fast path is compared with.
    if effort.plain:
        calls["plain"] = case.plain
    if case.device.type == "cpu":
        calls["products"] = case.products(packed=False)
        if FastPath.of(case.model).network(case.model) is not None:
            calls["packed_products"] = case.products(packed=True)
    for name in calls.keys() - {"fast", "vq"}:
        calls[name]()
    record |= benchmark.compare(calls, case.batch_size, effort)
    for name in calls.keys() & {"products", "packed_products"}:
        record[f"{name}_ratio"] = (record["fast_s"] - record["vq_s"]) / record[f"{name}_s"]
    floor_s = case.floor(rates)
    return record | {"floor_s": floor_s, "floor_share": floor_s / record["fast_s"]}


if __name__ == "__main__":
    logs.setup()
    run(lambda: main(parse_args()))
