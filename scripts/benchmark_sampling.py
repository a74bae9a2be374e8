"""Time from labels to images, fast and plain, beside the least time this machine allows.

    python scripts/benchmark_sampling.py [--quick] [--output sampling.json]

Weights are random, and orders are at hand as from an order file. All that stands in one line of
the table is timed in turn. Times drift between runs: only ratios taken in one run count.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from models.cuda_graphs import GraphCache
from models.decoding import generate
from models.fast import FastPath, NetworkWeights
from models.lpd import LPD, MODELS
from models.sampling import SamplingSettings, guidance_scales, pick
from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders
from orders.sources import published_repulsion
from performance import timing as benchmark
from performance.cost import FORMULA, Generation, Rates, Work, tokenizer_cost, total
from performance.timing import DTYPES, NAMES, Effort, Record, random_weights
from tokenizers.fast_decoder import FastDecoder
from tokenizers.vq_model import VQModel
from util import logs
from util.errors import run
from util.images import to_uint8

BATCH_SIZES = {"cpu": [1, 4], "cuda": [1, 8, 64, 256]}
# Title, number format and factor by key.
COLUMNS = {
    "row": ("row", "", 1),
    "dtype": ("type", "", 1),
    "batch_size": ("batch", "d", 1),
    "rounds": ("rounds", "d", 1),
    "fast_s": ("fast, ms", ".1f", 1e3),
    "fast_p95_s": ("95 %, ms", ".1f", 1e3),
    "images_per_s": ("images/s", ".2f", 1),
    "plain_s": ("plain, ms", ".1f", 1e3),
    "ratio": ("plain / fast", ".2f", 1),
    "floor_s": ("floor, ms", ".1f", 1e3),
    "floor_share": ("floor / fast", ".0%", 1),
    "transformer_s": ("transformer, ms", ".1f", 1e3),
    "head_s": ("head + drawing, ms", ".1f", 1e3),
    "vq_s": ("VQ decoder, ms", ".1f", 1e3),
    "products_ratio": ("generation / products", ".2f", 1),
    "packed_products_ratio": ("generation / packed products", ".2f", 1),
    "peak_bytes": ("peak, GiB", ".2f", 2**-30),
    "cold_start_s": ("cold start, s", ".1f", 1),
}
NOTES = """\
fast, 95 %: median and 95th percentile, from labels to uint8 images on the device
transformer: what head + drawing and VQ decoder, timed alone, leave of the fast median
generation: the fast median without the VQ decoder; products: the bare matrix products of the same
  shapes, as nn.Linear runs them or (packed) with weights in the fast path's layout
peak: on a GPU of the fast path, on a CPU of the process so far
cold start: the first images, with preparation, compilation and capture
"""


@dataclass(frozen=True)
class Row:
    """One row of the published table; the guidance schedule is linear."""

    model: str  # a key of `MODELS`
    image_size: int  # pixels
    steps: int
    cfg: float

    @property
    def name(self) -> str:
        """As `--rows` takes it."""
        return f"{self.model}_{self.image_size}_{self.steps}"


ROWS = (
    Row("lpd_l", 256, 20, 4.8),
    Row("lpd_xl", 256, 20, 4.9),
    Row("lpd_xxl", 256, 20, 5.9),
    Row("lpd_l", 256, 32, 5.4),
    Row("lpd_xl", 256, 32, 5.0),
    Row("lpd_l", 512, 48, 7.3),
    Row("lpd_xl", 512, 48, 6.0),
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark.build_parser(
        "Time from labels to images, beside what this machine allows.",
        [row.name for row in ROWS],
        plain="path",
        quick="one row, one image at a time",
    )
    parser.add_argument("--dtype", choices=("bf16", "f32", "both"), help="by default bf16 on a GPU")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Measure, show the table and write it."""
    effort = benchmark.read_effort(args)
    kind = effort.device.type
    keep = benchmark.result_file(args.output, effort.device)
    dtype = args.dtype or ("bf16" if kind == "cuda" else "both")
    dtypes = ("bf16", "f32") if dtype == "both" else (dtype,)
    sizes = args.batch_sizes or ([1] if args.quick else BATCH_SIZES[kind])
    rows = ROWS[:1] if args.quick else ROWS
    if args.rows:
        rows = [row for row in ROWS if row.name in args.rows]
    rated = DTYPES if kind == "cuda" else {*dtypes, "f32"}  # all that the VQ decoder may choose
    rates = benchmark.measure_rates(effort.device, [DTYPES[name] for name in rated])
    tokenizer = random_weights(VQModel, effort.device)

    def series(row: Row, dtype: str) -> Iterator[Record]:
        if kind == "cuda":
            torch.compiler.reset()  # the fast path compiles for the sizes of a model
        model = random_model(row, tokenizer, DTYPES[dtype], effort.device)
        # On a CPU plain float32 is slow: a quick run calls it once, cold.
        once = args.quick and kind == "cpu" and dtype == "f32"
        for size in sizes:
            names = {"row": row.name, **asdict(row), "dtype": dtype, "batch_size": size}
            case = (row, model, tokenizer, DTYPES[dtype], size)
            yield names | measure(Case(*case), rates, effort, once)

    benchmark.show(
        {f"{row.name}, {dtype}": series(row, dtype) for row in rows for dtype in dtypes},
        *(keep, COLUMNS, f"{NOTES}\n{FORMULA}"),
        formula=FORMULA,
        rates={NAMES[dtype]: asdict(rate) for dtype, rate in rates.items()},
    )


def random_model(row: Row, tokenizer: VQModel, dtype: torch.dtype, device: torch.device) -> LPD:
    """Make the network of a row for a tokenizer, its weights rounded as an evaluation does."""
    sizes = dict(vqgan_stride=tokenizer.stride, vqgan_vocab_size=tokenizer.codebook_size)
    model = random_weights(lambda: MODELS[row.model](img_size=row.image_size, **sizes), device)
    if dtype != torch.float32:
        model.round_products(dtype)
    return model


class Case:
    """One line of the table: a model, a type and a number of images."""

    def __init__(
        self, row: Row, model: LPD, tokenizer: VQModel, dtype: torch.dtype, batch_size: int
    ) -> None:
        FastPath.forget(model)  # without what other cases prepared and captured
        self.model, self.tokenizer, self.dtype = model, tokenizer, dtype
        self.device, self.batch_size = model.pos_embed.device, batch_size
        self.settings = SamplingSettings(cfg=row.cfg)
        num_tokens = model.grid.num_tokens
        self.sizes = group_sizes(num_tokens, row.steps)
        repulsion = published_repulsion(num_tokens, row.steps)
        self.orders = locality_aware_orders(
            batch_size, self.sizes, model.grid.side, repulsion_threshold=repulsion
        )
        self.labels = torch.arange(batch_size) % model.class_num
        sequences = batch_size * (2 if self.settings.guided else 1)
        self.generation = Generation.of(model, self.sizes, sequences, dtype.itemsize)

    def autocast(self) -> torch.autocast:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def generate(self, sampler: str) -> Tensor:
        """(B, N) int64 codes on the device."""
        inputs = (self.model, self.labels, self.orders, self.sizes, self.settings)
        with self.autocast():
            return generate(*inputs, sampler=sampler)

    @cached_property
    def tokens(self) -> Tensor:
        """Those of the fast sampler's first call."""
        return self.generate("fast")

    @cached_property
    def decoder(self) -> FastDecoder:
        """The fast VQ decoder."""
        return FastDecoder(self.tokenizer, self.model.grid.num_tokens)

    def fast(self) -> Tensor:
        """(B, S, S, 3) uint8 images on the device."""
        return self.decoder(self.generate("fast"))

    @torch.no_grad()
    def plain(self) -> Tensor:
        """As `fast`, by the code that is there to be read."""
        some = self.generate("plain").split(16)  # as many as the fast decoder takes at once
        return torch.cat([to_uint8(self.tokenizer.decode_code(codes)) for codes in some])

    @property
    def weights(self) -> NetworkWeights:
        """What the fast sampler multiplies with, or the same as they are if it does not serve."""
        with self.autocast():
            network = FastPath.of(self.model).network(self.model)
        if network is None:
            return NetworkWeights.prepare(self.model, self.dtype, packed=False)
        return network._weights

    def head_and_drawing(self) -> Callable[[], Tensor]:
        """What follows the last block at every step, on random rows: norm, head, guidance, drawing.

        On a GPU it is one CUDA graph, as it is part of one in the fast sampler.
        """
        norm, head = self.weights.norm, self.weights.head
        scales = guidance_scales(self.settings, sum(self.sizes), self.device).split(self.sizes)

        def draw_all(x: Tensor, uniforms: Tensor) -> Tensor:
            drawn = []
            for scale, uniform in zip(scales, uniforms.split(self.sizes, dim=1), strict=True):
                logits = head(norm(x[:, : len(scale)].flatten(0, 1))).unflatten(0, (len(x), -1))
                drawn.append(pick(logits, scale, uniform, self.settings))
            return torch.cat(drawn, dim=1)

        shape = (self.generation.sequences, max(self.sizes), self.generation.width)
        x = torch.randn(shape, device=self.device)
        uniforms = torch.rand(self.batch_size, sum(self.sizes), device=self.device)
        if self.device.type == "cpu":
            return lambda: draw_all(x, uniforms)
        graphs = GraphCache(1)
        return lambda: graphs.run("head and drawing", draw_all, x, uniforms)

    def floor(self, rates: Mapping[torch.dtype, Rates]) -> Record:
        """`floor_s`, and in `floor` all that it was computed from."""
        steps, vq_dtype = self.generation.steps(), self.decoder.dtype
        one = tokenizer_cost(self.tokenizer, sum(self.sizes), vq_dtype.itemsize)["decoder"]
        vq = Work(one.bytes, self.batch_size * one.operations)  # weights are read once for all
        steps_s = sum(step.seconds(rates[self.dtype]) for step in steps)
        parts = {
            name: {**asdict(work), **asdict(rates[dtype]), "seconds": seconds}
            for name, work, dtype, seconds in (
                ("steps", total(steps), self.dtype, steps_s),
                ("vq", vq, vq_dtype, vq.seconds(rates[vq_dtype])),
            )
        }
        parts["vq"]["dtype"] = NAMES[vq_dtype]
        seconds = steps_s + parts["vq"]["seconds"]
        return {"floor_s": seconds, "floor": {"generation": asdict(self.generation), **parts}}


def bare_products(weights: NetworkWeights, generation: Generation) -> Callable[[], None]:
    """Return what makes all matrix products of a generation, and nothing between them."""
    most = generation.sequences * max(map(sum, generation.step_rows()))
    x, hidden = (torch.randn(most, n * generation.width).to(weights.dtype) for n in (1, 4))

    def multiply() -> None:
        for context, queries in generation.step_rows():
            rows = generation.sequences * (context + queries)
            for block in weights.blocks:
                for layer in (block.qkv, block.proj, block.fc1):
                    layer(x[:rows])
                block.fc2(hidden[:rows])
            weights.head(x[: generation.sequences * queries])

    return multiply


def warm_up(case: Case) -> Record:
    """Make the fast path's first calls; return what they take."""
    benchmark.reset_peak(case.device)
    started = time.perf_counter()
    tokens = case.tokens
    case.decoder(tokens)
    benchmark.wait_for(case.device)
    seconds = time.perf_counter() - started
    return {"cold_start_s": seconds, "peak_bytes": benchmark.peak_bytes(case.device)}


@torch.no_grad()
def measure(
    case: Case, rates: Mapping[torch.dtype, Rates], effort: Effort, once: bool = False
) -> Record:
    """Warm a case up and time it and its parts in turn; the plain path only `once`, then cold."""
    record = warm_up(case)
    paths = {"fast": case.fast} | ({"plain": case.plain} if effort.plain else {})
    if effort.plain and not once:
        benchmark.reset_peak(case.device)
        case.plain()
        record["plain_peak_bytes"] = benchmark.peak_bytes(case.device)
    head = case.head_and_drawing()
    head()  # all else is warm: the products are those of the two paths
    calls = {**paths, "vq": lambda: case.decoder(case.tokens), "head": head}
    if case.device.type == "cpu":
        plain = NetworkWeights.prepare(case.model, case.dtype, packed=False)
        calls["products"] = bare_products(plain, case.generation)
        if case.weights.head.packed:
            calls["packed_products"] = bare_products(case.weights, case.generation)
    median, times = benchmark.time_in_turn(calls, effort, once={"plain"} if once else ())
    generation_s = median["fast"] - median["vq"]
    floor = case.floor(rates)
    return {
        **record,
        "rounds": len(times["fast"]),
        **{f"{name}_s": seconds for name, seconds in median.items()},
        **{f"{path}_p95_s": float(np.percentile(times[path], 95)) for path in paths},
        "images_per_s": case.batch_size / median["fast"],
        "ratio": median["plain"] / median["fast"] if effort.plain else None,
        "transformer_s": generation_s - median["head"],
        **{f"{x}_ratio": generation_s / median[x] for x in median if x.endswith("products")},
        **floor,
        "floor_share": floor["floor_s"] / median["fast"],
        "times_s": times,
    }


if __name__ == "__main__":
    logs.setup()
    run(lambda: main(parse_args()))
