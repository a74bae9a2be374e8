"""Time from labels to images, fast and plain, beside the least time this machine allows.

    python scripts/benchmark_sampling.py [--quick] [--output sampling.json]

Weights are random, and orders are at hand as from an order file. All that stands in one line of
the table is timed in turn. Times drift between runs: only ratios taken in one run count.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from models.cuda_graphs import GraphCache
from models.decoding import generate
from models.fast import FastPath, Linear, NetworkWeights, Norm
from models.lpd import LPD, MODELS
from models.sampling import SamplingSettings, guidance_scales, pick
from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders
from orders.sources import published_repulsion
from performance import timing as benchmark
from performance.cost import FORMULA, Generation, Rates, Work, tokenizer_cost, total
from performance.timing import Effort, random_weights
from tokenizers.fast_decoder import FastDecoder
from tokenizers.vq_model import VQModel
from util import logs
from util.errors import run
from util.geometry import TokenGrid
from util.images import to_uint8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One row of the published table; the guidance schedule is linear.

    Attributes:
        model: a key of `MODELS`.
        image_size: side of the image, pixels.
        steps: of the generation, K.
        cfg: guidance strength.
    """

    model: str
    image_size: int
    steps: int
    cfg: float

    @property
    def name(self) -> str:
        """As `--rows` takes it."""
        return f"{self.model}_{self.image_size}_{self.steps}"


def random_model(row: Row, tokenizer: VQModel, device: torch.device) -> LPD:
    """The network of a row for a tokenizer."""
    grid = TokenGrid(row.image_size, tokenizer.stride, tokenizer.codebook_size)

    def build() -> LPD:
        sizes = {"vqgan_stride": grid.stride, "vqgan_vocab_size": grid.vocab_size}
        return MODELS[row.model](img_size=grid.image_size, **sizes)

    return random_weights(build, device)


class Case:
    """One line of the table: a model, a type and a number of images.

    Attributes:
        generation: the sizes of its decoding.
        tokens: made by the fast sampler, (B, N) int64; None until `warm_up`.
        decoder: the fast VQ decoder; None until `warm_up`.
    """

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
        self.tokens: Tensor | None = None
        self.decoder: FastDecoder | None = None

    def autocast(self) -> torch.autocast:
        """Gives the network's matrix products their type."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def generate(self, sampler: str) -> Tensor:
        """(B, N) int64 codes on the device."""
        inputs = (self.model, self.labels, self.orders, self.sizes, self.settings)
        with self.autocast():
            return generate(*inputs, sampler=sampler)

    def fast(self) -> Tensor:
        """(B, S, S, 3) uint8 images on the device."""
        return self.decoder(self.generate("fast"))

    @torch.no_grad()
    def plain(self) -> Tensor:
        """As `fast`, by the code that is there to be read."""
        return to_uint8(self.tokenizer.decode_code(self.generate("plain")))

    def uses_packed_weights(self) -> bool:
        """Whether the fast sampler serves this case with weights laid out for a CPU."""
        with self.autocast():
            served = FastPath.of(self.model).network(self.model) is not None
        return served and self.device.type == "cpu"


def decoder_work(case: Case) -> Work:
    """What the VQ decoder of a warm case has to do; its weights are read once for all images."""
    number_bytes = case.decoder.dtype.itemsize
    work = tokenizer_cost(case.tokenizer, sum(case.sizes), number_bytes)["decoder"]
    return Work(work.bytes, case.batch_size * work.operations)


def head_and_drawing(case: Case, packed: bool) -> Callable[[], Tensor]:
    """What follows the last block at every step, on random rows: norm, head, guidance, drawing.

    On a GPU it is one CUDA graph, as it is part of one in the fast sampler.
    """
    norm = Norm.prepare(case.model.norm)
    head = Linear.prepare(case.model.head, case.dtype, packed)
    scales = guidance_scales(case.settings, sum(case.sizes), case.device)

    def draw_all(x: Tensor, uniforms: Tensor) -> Tensor:
        drawn, start = [], 0
        for size in case.sizes:
            group = slice(start, start + size)
            logits = head(norm(x[:, :size].flatten(0, 1))).unflatten(0, (len(x), size))
            drawn.append(pick(logits, scales[group], uniforms[:, group], case.settings))
            start += size
        return torch.cat(drawn, dim=1)

    shape = (case.generation.sequences, max(case.sizes), case.generation.width)
    x = torch.randn(shape, device=case.device)
    uniforms = torch.rand(case.batch_size, sum(case.sizes), device=case.device)
    if case.device.type == "cpu":
        return lambda: draw_all(x, uniforms)
    graphs = GraphCache(1)
    return lambda: graphs.run("head and drawing", draw_all, x, uniforms)


def bare_products(weights: NetworkWeights, generation: Generation) -> Callable[[], None]:
    """All matrix products of a generation by its weights, and nothing between them."""
    most = generation.sequences * max(map(sum, generation.step_rows()))
    x, hidden = (torch.randn(most, width * generation.width).to(weights.dtype) for width in (1, 4))

    def multiply() -> None:
        for context, queries in generation.step_rows():
            rows = generation.sequences * (context + queries)
            for block in weights.blocks:
                for layer in (block.qkv, block.proj, block.fc1):
                    layer(x[:rows])
                block.fc2(hidden[:rows])
            weights.head(x[: generation.sequences * queries])

    return multiply


DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "f16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
BATCH_SIZES = {"cpu": [1, 4], "cuda": [1, 8, 64, 256]}
# On a GPU, 30 make a 95th percentile.
MOST_ROUNDS = 30

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
    "memory_ratio": ("peak / needed", ".2f", 1),
    "cold_start_s": ("cold start, s", ".1f", 1),
}
NOTES = """\
fast, 95 %: median and 95th percentile, from labels to uint8 images on the device
transformer: what head + drawing and VQ decoder, timed alone, leave of the fast median
generation: the fast median without the VQ decoder; products: the bare matrix products of the same
  shapes, as nn.Linear runs them or (packed) with weights in the fast path's layout
peak: on a GPU of the fast path, on a CPU of the process so far; peak / needed: without the VQ
  decoder, over the model's weights + key-value cache + one step's activations
cold start: the first images, with preparation, compilation and capture
"""


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
    names = [row.name for row in ROWS]
    parser = benchmark.build_parser(
        "Time from labels to images, beside what this machine allows.",
        names,
        plain="path",
        quick="one row, one image at a time",
    )
    parser.add_argument("--dtype", choices=("bf16", "f32", "both"), help="by default bf16 on a GPU")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Measure, show the table and write it."""
    device = benchmark.choose_device(args.device)
    machine = benchmark.describe_machine(device)
    keep = benchmark.result_file(args.output, machine)
    dtype = args.dtype or ("bf16" if device.type == "cuda" else "both")
    effort = Effort(
        device=device,
        dtypes=("bf16", "f32") if dtype == "both" else (dtype,),
        batch_sizes=args.batch_sizes or ([1] if args.quick else BATCH_SIZES[device.type]),
        plain=not args.no_plain,
        rounds=2 if args.quick else 3,
        seconds=0 if args.quick else args.seconds,
        plain_once=("f32",) if args.quick and device.type == "cpu" else (),
    )
    wanted = args.rows or [row.name for row in (ROWS[:1] if args.quick else ROWS)]
    result = measure_rows(
        [row for row in ROWS if row.name in wanted],
        benchmark.random_weights(VQModel, device),
        effort,
        keep,
    )
    sys.stdout.write(report(result["rows"]))
    logger.info("measured on %s", machine)


def measure_rows(
    rows: Sequence[Row],
    tokenizer: VQModel,
    effort: Effort,
    keep: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """Measure every row at every type and batch size that fits.

    Args:
        rows: of the table.
        tokenizer: on the effort's device.
        effort: what is measured, and how often.
        keep: gets the result so far after every series; a long run that breaks leaves those.

    Returns:
        `formula` of the floor, `rates` of the machine by type, and one record per line in `rows`.
    """
    dtypes = {DTYPES[name] for name in effort.dtypes} | {torch.float32}
    if effort.device.type == "cuda":
        dtypes |= {torch.float16, torch.bfloat16}  # what the VQ decoder may choose
    rates = benchmark.measure_rates(effort.device, dtypes)
    by_name = {NAMES[dtype]: asdict(rate) for dtype, rate in rates.items()}
    result = {"formula": FORMULA, "rates": by_name, "rows": []}
    bar = logs.progress(total=len(rows) * len(effort.dtypes), desc="sampling", unit="series")
    with logs.logging_redirect_tqdm(), bar:
        for row in rows:
            if effort.device.type == "cuda":
                torch.compiler.reset()  # the fast path compiles for the sizes of a model
            for dtype in effort.dtypes:
                model = random_model(row, tokenizer, effort.device)
                if DTYPES[dtype] != torch.float32:
                    model.round_products(DTYPES[dtype])  # as an evaluation does
                result["rows"] += measure_series(row, model, tokenizer, dtype, rates, effort)
                del model  # before the next one comes
                keep(result)
                bar.update()
    return result


def measure_series(
    row: Row,
    model: LPD,
    tokenizer: VQModel,
    dtype: str,
    rates: Mapping[torch.dtype, Rates],
    effort: Effort,
) -> list[dict[str, Any]]:
    """One record per batch size; one that does not fit ends the series in one line of the log."""
    once = dtype in effort.plain_once

    def first_calls(batch_size: int) -> tuple[Case, dict[str, Any]]:
        case = Case(row, model, tokenizer, DTYPES[dtype], batch_size)
        return case, warm_up(case)

    def measured(batch_size: int) -> dict[str, Any]:
        record = {"row": row.name, **asdict(row), "dtype": dtype, "batch_size": batch_size}
        case, first = first_calls(batch_size)
        plain = effort.plain
        if plain and not once:
            first["plain_peak_bytes"] = warm_up_plain(case)
            plain = first["plain_peak_bytes"] is not None
        return record | first | measure(case, rates, effort, plain, once)

    def logged(batch_size: int) -> dict[str, Any]:
        record = measured(batch_size)
        logger.info(
            "%s, %s, batch of %d: %.1f ms, %.2f images/s, %.0f %% of the floor's speed",
            *(row.name, dtype, batch_size, 1e3 * record["fast_s"]),
            *(record["images_per_s"], 100 * record["floor_share"]),
        )
        return record

    name = f"{row.name}, {dtype}"
    return benchmark.measure_series(logged, effort.batch_sizes, name, effort.device, first_calls)


def warm_up(case: Case) -> dict[str, Any]:
    """The fast path's first calls: what they take, and the memory they need."""
    device, generation = case.device, case.generation
    record: dict[str, Any] = {}
    benchmark.reset_peak(device)
    started = time.perf_counter()
    case.tokens = case.generate("fast")
    benchmark.wait_for(device)
    if device.type == "cuda":
        peak = benchmark.peak_bytes(device) - benchmark.num_bytes(case.tokenizer)
        needs = {
            "weight_bytes": benchmark.num_bytes(case.model),
            "cache_bytes": generation.cache_bytes,
            "activation_bytes": generation.activation_bytes,
        }
        record |= {"memory": {"peak_bytes": peak, **needs}}
        record["memory_ratio"] = peak / sum(needs.values())
    case.decoder = FastDecoder(case.tokenizer, case.model.grid.num_tokens)
    case.decoder(case.tokens)
    benchmark.wait_for(device)
    record["cold_start_s"] = time.perf_counter() - started
    record["peak_bytes"] = benchmark.peak_bytes(device)
    return record


def warm_up_plain(case: Case) -> int | None:
    """Peak bytes of the plain path's first call; None, and a line in the log, if it does not fit.

    The plain VQ decoder takes all images at once, so it may not where the fast path does.
    """
    benchmark.reset_peak(case.device)
    with suppress(torch.OutOfMemoryError):
        case.plain()
        benchmark.wait_for(case.device)
        return benchmark.peak_bytes(case.device)
    logger.warning("the plain path has no room for a batch of %d", case.batch_size)
    return None


@torch.no_grad()
def measure(
    case: Case, rates: Mapping[torch.dtype, Rates], effort: Effort, plain: bool, once: bool
) -> dict[str, Any]:
    """The figures of a warm case, with those of the plain path, or with it called only once."""
    on_cpu, packed = case.device.type == "cpu", case.uses_packed_weights()
    paths = {"fast": case.fast} | ({"plain": case.plain} if plain else {})
    head = head_and_drawing(case, packed)
    head()  # all else is warm: the products are those of the two paths
    parts = {"vq": lambda: case.decoder(case.tokens), "head": head}
    products = {}
    for name, layout in {"products": False, "packed_products": True}.items():
        if on_cpu and (packed or not layout):
            weights = NetworkWeights.prepare(case.model, case.dtype, layout)
            products[name] = bare_products(weights, case.generation)
    times = benchmark.time_in_turn(
        paths | parts | products,
        case.device,
        rounds=(effort.rounds, max(effort.rounds, MOST_ROUNDS)),
        seconds=effort.seconds,
        once={"plain"} if once else (),
    )
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    generation_s = median["fast"] - median["vq"]
    floors = floor(case, rates)
    return {
        "rounds": len(times["fast"]),
        **{f"{name}_s": seconds for name, seconds in median.items()},
        **{f"{name}_p95_s": float(np.percentile(times[name], 95)) for name in paths},
        "images_per_s": case.batch_size / median["fast"],
        "ratio": median["plain"] / median["fast"] if plain else None,
        "transformer_s": generation_s - median["head"],
        **{f"{name}_ratio": generation_s / median[name] for name in products},
        **floors,
        "floor_share": floors["floor_s"] / median["fast"],
        "times_s": times,
    }


def floor(case: Case, rates: Mapping[torch.dtype, Rates]) -> dict[str, Any]:
    """`floor_s` of a case, and in `floor` all that it was computed from."""
    steps = case.generation.steps()
    vq, vq_dtype = decoder_work(case), case.decoder.dtype
    steps_s = sum(step.seconds(rates[case.dtype]) for step in steps)
    vq_s = vq.seconds(rates[vq_dtype])
    parts = {
        "generation": asdict(case.generation),
        "steps": {**asdict(total(steps)), **asdict(rates[case.dtype]), "seconds": steps_s},
        "vq": {**asdict(vq), **asdict(rates[vq_dtype]), "seconds": vq_s, "dtype": NAMES[vq_dtype]},
    }
    return {"floor_s": steps_s + vq_s, "floor": parts}


def report(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as a table, what its columns mean, and how the floors come about."""
    table = benchmark.markdown_table(COLUMNS, records)
    return "\n".join([table, NOTES, FORMULA, *map(floor_line, records), ""])


def floor_line(record: Mapping[str, Any]) -> str:
    """The formula of the floor with a record's numbers."""
    steps, vq = (
        f"max({part['bytes'] / 1e9:.3g} GB / {part['bandwidth'] / 1e9:.4g} GB/s, "
        f"{part['operations'] / 1e12:.3g} TFLOP / {part['rate'] / 1e12:.3g} TFLOP/s)"
        for part in (record["floor"]["steps"], record["floor"]["vq"])
    )
    return (
        f"{record['row']}, {record['dtype']}, batch {record['batch_size']}: "
        f"step by step {steps} = {1e3 * record['floor']['steps']['seconds']:.1f} ms; "
        f"VQ decoder ({record['floor']['vq']['dtype']}) {vq} = "
        f"{1e3 * record['floor']['vq']['seconds']:.1f} ms; "
        f"together {1e3 * record['floor_s']:.1f} ms"
    )


if __name__ == "__main__":
    logs.setup()
    run(lambda: main(parse_args()))
