"""What benchmarks share: timing in turn, peak memory, what the machine does at best, tables."""

from __future__ import annotations

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

import torch
import torch.nn.functional as F
from torch import nn

from performance.cost import Rates
from util import distributed, logs
from util.cli import Parser, add_flags, number, whole
from util.errors import blame, require_writable_folder
from util.files import write_json

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)
Record = dict[str, Any]
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
_RATE_CALLS = {"cpu": 4, "cuda": 20}


@dataclass(frozen=True)
class Effort:
    """Where, and how often calls are timed: at least `rounds` times, then for `seconds`."""

    device: torch.device
    rounds: int = 3
    seconds: float = 10.0
    plain: bool = True  # measure the plain path, too


def build_parser(description: str, rows: Sequence[str], plain: str, quick: str) -> Parser:
    """Declare the flags of a benchmark; `plain` and `quick` complete their help."""
    parser = Parser(description=description)
    parser.add_argument("--rows", nargs="+", choices=rows, metavar="ROW", help=", ".join(rows))
    parser.add_argument(
        "--batch_sizes", nargs="+", type=whole(1), help="images at a time; by default the row's own"
    )
    parser.add_argument("--device", help="by default cuda where there is one, else cpu")
    parser.add_argument("--seconds", type=number(), default=10.0, help="per line of the table")
    parser.add_argument("--no_plain", action="store_true", help=f"leave out the plain {plain}")
    parser.add_argument("--quick", action="store_true", help=f"two rounds; by default {quick}")
    add_flags(parser, "--output", "--debug")
    return parser


def read_effort(args: argparse.Namespace) -> Effort:
    """Read it off the flags of `build_parser`."""
    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    rounds, seconds = (2, 0.0) if args.quick else (3, args.seconds)
    device = distributed.resolve_device(name, distributed.Launch())
    return Effort(device, rounds, seconds, not args.no_plain)


def result_file(output: Path | None, device: torch.device) -> Callable[..., None]:
    """Return what writes figures, beside machine and command, to `--output` if it is given."""
    machine = describe_machine(device)
    logger.info("machine: %s", machine)
    if output is not None:
        require_writable_folder(output.parent, "--output")

    def keep(**figures: Any) -> None:
        if output is not None:
            with blame("--output"):
                write_json({"machine": machine, "command": sys.argv, **figures}, output)

    return keep


def show(
    series: Mapping[str, Iterable[Record]],
    keep: Callable[..., None],
    columns: Columns,
    notes: str,
    **about: Any,
) -> None:
    """Print a table of all records of all series, each of which goes to `keep` at once.

    A series ends where memory does, with one line of the log.
    """
    rows: list[Record] = []
    with logs.logging_redirect_tqdm():
        for name, records in logs.progress(series.items(), desc="benchmark", unit="series"):
            try:
                for record in records:
                    rows.append(record)
                    keep(**about, rows=rows)
            except torch.OutOfMemoryError as error:
                reason = str(error).splitlines()[0]
                logger.warning("%s: the next batch size does not fit: %s", name, reason)
    sys.stdout.write(f"{markdown_table(columns, rows)}\n{notes}")


def wait_for(device: torch.device) -> None:
    """Let a GPU finish; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Time one call until the device has done its work."""
    wait_for(device)
    started = time.perf_counter()
    function()
    wait_for(device)
    return time.perf_counter() - started


def time_in_turn(
    subjects: Mapping[str, Callable[[], object]], effort: Effort, once: Collection[str] = ()
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Call warm functions in turn, so that a machine that drifts treats all alike.

    Returns medians and all seconds by name; those in `once` are called in the first round only.
    """
    times: dict[str, list[float]] = {name: [] for name in subjects}
    started = time.perf_counter()
    for turn in range(max(effort.rounds, MOST_ROUNDS)):
        if turn >= effort.rounds and time.perf_counter() - started >= effort.seconds:
            break
        for name, function in subjects.items():
            if turn == 0 or name not in once:
                times[name].append(seconds_of(function, effort.device))
    return {name: statistics.median(seconds) for name, seconds in times.items()}, times


def measure_rates(
    device: torch.device, dtypes: Collection[torch.dtype]
) -> dict[torch.dtype, Rates]:
    """Measure a large copy and, by type, the fastest of several large matrix products."""
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / _least_seconds(lambda: target.copy_(source), device)
    rates = {}
    for dtype in dtypes:
        products = large_products(device, dtype).values()
        best = max(work / _least_seconds(product, device) for product, work in products)
        rates[dtype] = Rates(bandwidth, best)
    return rates


def large_products(
    device: torch.device, dtype: torch.dtype
) -> dict[str, tuple[Callable[[], object], int]]:
    """Return products that a machine is fast at, by name: a function, and its operations."""
    random = partial(torch.randn, device=device, dtype=dtype)
    return {
        f"{rows} x {width} x {out}": (
            partial(F.linear, random(rows, width), random(out, width)),
            2 * rows * width * out,
        )
        for rows, width, out in _PRODUCTS[device.type]
    }


def _least_seconds(function: Callable[[], object], device: torch.device) -> float:
    function()
    return min(seconds_of(function, device) for _ in range(_RATE_CALLS[device.type]))


def reset_peak(device: torch.device) -> None:
    """Let a GPU's peak begin at what is allocated now; a process's cannot be reset."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """A GPU's largest allocation since `reset_peak`; on a CPU the process's largest so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


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
            shown = [title, *(_cell(value, kind, factor) for value in values)]
            width = max(map(len, shown))
            shown.insert(1, "-" * (width - 1) + ":")
            cells.append([text.rjust(width) for text in shown])
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*cells, strict=True))


def _cell(value: Any, kind: str, factor: float) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value * factor:{kind}}"
