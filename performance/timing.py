"""What benchmarks share: flags, timing in turn, what the machine does at best, tables."""

import argparse
import logging
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models.fast import Linear, NetworkWeights
from models.lpd import LPD
from performance.cost import Rates
from util import distributed, logs
from util.cli import Parser, add_flags, number, whole
from util.errors import require_writable_file
from util.files import write_json

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)
Record = dict[str, Any]
Calls = dict[str, Callable[[], object]]
# Title, number format and factor by key of a record.
Columns = Mapping[str, tuple[str, str, float]]

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "f16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Calls of a kind that are timed at most: enough for a 95th percentile.
MOST_ROUNDS = 30
# Of the copy whose bandwidth is measured: far beyond any cache.
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
# (rows, in, out) of the products whose rate is measured.
_PRODUCTS = {
    "cpu": ((512, 1024, 4096), (2048, 2048, 2048), (1024, 4096, 4096)),
    "cuda": ((8192, 8192, 8192), (16384, 4096, 4096), (16384, 8192, 8192), (4096, 4096, 16384)),
}
# What every benchmark of a network shows first.
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
    "peak_bytes": ("peak, GiB", ".2f", 2**-30),
}


@dataclass(frozen=True)
class Effort:
    """Where, and how often calls are timed: at least `rounds` times, then for `seconds`."""

    device: torch.device
    rounds: int = 3
    seconds: float = 10.0
    plain_rounds: int = MOST_ROUNDS  # that time the plain path, too


def build_parser(what: str, rows: Collection[str], quick: str) -> Parser:
    """Declare the flags of a benchmark; `what` and `quick` complete the help."""
    parser = Parser(description=f"Time {what}, beside what this machine allows.")
    parser.add_argument("--rows", nargs="+", choices=rows, metavar="ROW", help=", ".join(rows))
    parser.add_argument("--batch_sizes", nargs="+", type=whole(1), help="instead of the row's own")
    add_flags(parser, "--device", default=None, help="by default cuda where there is one, else cpu")
    parser.add_argument("--seconds", type=number(), default=10.0, help="per line of the table")
    parser.add_argument("--no_plain", action="store_true", help="leave out the plain path")
    parser.add_argument("--quick", action="store_true", help=f"two rounds; by default {quick}")
    add_flags(parser, "--output", "--debug")
    return parser


def read_effort(parser: Parser, argv: list[str] | None) -> tuple[argparse.Namespace, Effort]:
    """Parse the flags of `build_parser`; check, before the work, where figures go."""
    args = parser.parse_args(argv)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    rounds, seconds = (2, 0.0) if args.quick else (3, args.seconds)
    device = distributed.resolve_device(args, distributed.Launch())
    write_figures(args.output, device)
    return args, Effort(device, rounds, seconds, 0 if args.no_plain else MOST_ROUNDS)


def write_figures(output: Path | None, device: torch.device, **figures: Any) -> None:
    """Write figures, beside machine and command, to `--output` if it is given; as a check none."""
    if output is not None:
        require_writable_file(output, "--output")
        machine = describe_machine(device)
        write_json({"machine": machine, "command": sys.argv, **figures}, output)


def show(
    series: Mapping[str, Iterable[Record]], columns: Columns, notes: str, write: Callable[..., None]
) -> None:
    """Print a table of all records of all series; `write` takes all `rows` after each.

    A series ends where memory does, with one line of the log.
    """
    rows: list[Record] = []
    with logs.logging_redirect_tqdm():
        for name, records in logs.progress(series.items(), desc="benchmark", unit="series"):
            logger.info("measuring %s", name)
            try:
                for record in records:
                    rows.append(record)
                    write(rows=rows)
            except torch.OutOfMemoryError as error:
                reason = str(error).splitlines()[0]
                logger.warning("%s: the next batch size does not fit: %s", name, reason)
    sys.stdout.write(f"{markdown_table(columns, rows)}\n{notes}")


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Time one call until the device has done its work."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - started


def warm_up(function: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Make first calls: `cold_start_s`, and `peak_bytes`, on a CPU of the process so far."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_of(function, device)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    return {"cold_start_s": seconds, "peak_bytes": peak}


def time_in_turn(calls: Calls, effort: Effort) -> dict[str, list[float]]:
    """Make warm calls in turn, so that a machine that drifts treats all alike; seconds by name."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    for turn in range(max(effort.rounds, MOST_ROUNDS)):
        if turn >= effort.rounds and time.perf_counter() - started >= effort.seconds:
            break
        for name, function in calls.items():
            if name != "plain" or turn < effort.plain_rounds:
                times[name].append(seconds_of(function, effort.device))
    return times


def compare(calls: Calls, batch_size: int, effort: Effort) -> Record:
    """Time warm calls in turn: `fast`, of so many images, and what it is compared with."""
    times = time_in_turn(calls, effort)
    record: Record = {"rounds": len(times["fast"]), "times_s": times}
    record |= {f"{name}_s": statistics.median(seconds) for name, seconds in times.items()}
    record["fast_p95_s"] = float(np.percentile(times["fast"], 95))
    record["images_per_s"] = batch_size / record["fast_s"]
    if "plain" in calls:
        record["ratio"] = record["plain_s"] / record["fast_s"]
    return record


def measure_rates(
    device: torch.device, dtypes: Collection[torch.dtype]
) -> dict[torch.dtype, Rates]:
    """Measure a large copy and, by type, the fastest of several large matrix products."""
    calls = 20 if device.type == "cuda" else 4

    def least_seconds(function: Callable[[], object]) -> float:
        function()
        return min(seconds_of(function, device) for _ in range(calls))

    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth, rates = 2 * source.numel() / least_seconds(lambda: target.copy_(source)), {}
    for dtype in dtypes:
        products = large_products(device, dtype).values()
        best = max(operations / least_seconds(product) for product, operations in products)
        rates[dtype] = Rates(bandwidth, best)
    return rates


def large_products(
    device: torch.device, dtype: torch.dtype
) -> dict[str, tuple[Callable[[], object], int]]:
    """Return by name products that a machine is fast at: what multiplies, and its operations."""
    random, products = partial(torch.randn, device=device, dtype=dtype), {}
    for rows, width, out in _PRODUCTS[device.type]:
        name, operations = f"{rows}x{width}x{out}", 2 * rows * width * out
        x, weight = random(rows, width), random(out, width)
        products[name] = partial(F.linear, x, weight), operations
        # In float32 nn.Linear multiplies by MKL, which some processors are slow at.
        if (device.type, dtype) == ("cpu", torch.float32) and torch.backends.mkldnn.is_available():
            packed = Linear(torch.ops.mkldnn._reorder_linear_weight(weight), None, packed=True)
            products[f"{name}, packed"] = partial(packed, x), operations
    return products


def bare_products(
    model: LPD, dtype: torch.dtype, most: int, packed: bool = False
) -> Callable[..., None]:
    """Return what multiplies rows, at most so many, with all matrices, and does nothing between.

    It takes the number of rows in the blocks and of those at the head; `backward` makes the
    products of the gradients, too. `packed`: with weights in the fast sampler's layout on a CPU.
    """
    weights = NetworkWeights.prepare(model, dtype, packed)
    layers = [layer for x in weights.blocks for layer in (x.qkv, x.proj, x.fc1, x.fc2)]
    widths = {width for layer in (*layers, weights.head) for width in layer.weight.shape}
    # Inputs and gradients.
    rows = {n: torch.randn(most, n, dtype=dtype, device=model.pos_embed.device) for n in widths}

    def multiply(in_blocks: int, at_head: int, backward: bool = False) -> None:
        work = [*((layer, in_blocks) for layer in layers), (weights.head, at_head)]
        for layer, count in work:
            layer(rows[layer.weight.shape[1]][:count])
        for layer, count in reversed(work) if backward else ():
            grad, x = (rows[width][:count] for width in layer.weight.shape)
            grad @ layer.weight
            grad.mT @ x

    return multiply


@torch.no_grad()
def random_weights(build: Callable[[], Module], device: torch.device) -> Module:
    """Return a model for inference with normal weights of std 0.02; norms are as they begin."""
    with torch.device("meta"):
        model = build()
    model.to_empty(device=device)
    for weight in (*model.parameters(), *model.buffers()):
        weight.normal_(std=0.02)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.reset_parameters()
    return model.eval().requires_grad_(False)


def describe_machine(device: torch.device) -> Record:
    """Name what figures depend on besides the code."""
    cpu = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def markdown_table(columns: Columns, records: Sequence[Mapping[str, Any]]) -> str:
    """Format records as a Markdown table that is aligned as text, too; without empty columns."""
    cells = []
    for key, (title, kind, factor) in columns.items():
        values = [record.get(key) for record in records]
        if any(value is not None for value in values):
            shown = ["" if value is None else f"{value * factor:{kind}}" for value in values]
            shown.insert(0, title)
            width = max(map(len, shown))
            shown.insert(1, "-" * (width - 1) + ":")
            cells.append([text.rjust(width) for text in shown])
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*cells, strict=True))
