"""What benchmarks share: timing in turn, peak memory, what the machine does at best, tables."""

from __future__ import annotations

import logging
import platform
import resource
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from models.cuda_graphs import largest_that_fits
from performance.cost import Rates
from util import distributed
from util.cli import Parser, add_flags, number, whole
from util.errors import blame, require_writable_folder
from util.files import write_json

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)

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
    """What is measured, and how often.

    Attributes:
        batch_sizes: tried in turn until one does not fit; none for the row's own.
        plain: measure the plain path, too.
        rounds: at least so many, whatever they take.
        seconds: after these no round begins beyond the least number.
        dtypes: of the network's matrix products.
        plain_once: types whose plain path, being slow, is called once, cold.
    """

    device: torch.device
    batch_sizes: Sequence[int] = ()
    plain: bool = True
    rounds: int = 3
    seconds: float = 10.0
    dtypes: Sequence[str] = ()
    plain_once: Collection[str] = ()


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
    parser.add_argument("--quick", action="store_true", help=f"few rounds; by default {quick}")
    add_flags(parser, "--output", "--debug")
    return parser


def choose_device(name: str | None) -> torch.device:
    """Resolve `--device`; by default a GPU where there is one."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return distributed.resolve_device(name or default, distributed.Launch())


def result_file(
    output: Path | None, machine: Mapping[str, Any]
) -> Callable[[Mapping[str, Any]], None]:
    """Return what writes a result so far, with machine and command, to `--output` if given."""
    if output is None:
        return lambda result: None
    require_writable_folder(output.parent, "--output")

    def keep(result: Mapping[str, Any]) -> None:
        with blame("--output"):
            write_json({"machine": machine, "command": sys.argv, **result}, output)

    return keep


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
    subjects: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: tuple[int, int],
    seconds: float,
    once: Collection[str] = (),
) -> dict[str, list[float]]:
    """Call warm functions in turn, so that a machine that drifts treats all alike.

    Args:
        rounds: least and largest number.
        seconds: after these no round begins beyond the least number.
        once: names of those called in the first round only.

    Returns:
        Seconds of every call, by name.
    """
    least, most = rounds
    times: dict[str, list[float]] = {name: [] for name in subjects}
    started = time.perf_counter()
    for turn in range(most):
        if turn >= least and time.perf_counter() - started >= seconds:
            break
        for name, function in subjects.items():
            if turn == 0 or name not in once:
                times[name].append(seconds_of(function, device))
    return times


def measure_series(
    measured: Callable[[int], dict[str, Any]],
    batch_sizes: Sequence[int],
    name: str,
    device: torch.device,
    attempt: Callable[[int], object] | None = None,
) -> list[dict[str, Any]]:
    """Measure each batch size; one that does not fit ends the series in one line of the log.

    `attempt` is a cheaper call than `measured` that finds the largest that fits.
    """
    records = []
    for batch_size in batch_sizes:
        record = None
        with suppress(torch.OutOfMemoryError):
            record = measured(batch_size)
        if record is None:  # only now is free what the failed attempt took
            fits = largest_that_fits(attempt or measured, batch_size)
            logger.warning(
                "%s: a batch of %d does not fit into the memory of %s, the largest that does is %d",
                *(name, batch_size, device, fits),
            )
            break
        records.append(record)
    return records


def measure_rates(
    device: torch.device, dtypes: Collection[torch.dtype]
) -> dict[torch.dtype, Rates]:
    """Measure a large copy and, by type, the fastest of several large matrix products."""
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / _least_seconds(lambda: target.copy_(source), device)
    rates = {}
    for dtype in dtypes:
        products = large_products(device, dtype)
        best = max(work / _least_seconds(product, device) for product, work in products.values())
        rates[dtype] = Rates(bandwidth, best)
    return rates


def large_products(
    device: torch.device, dtype: torch.dtype
) -> dict[str, tuple[Callable[[], object], int]]:
    """Return products that a machine is fast at, by name: a function, and its operations."""

    def product(rows: int, width: int, out: int) -> Callable[[], object]:
        x = torch.randn(rows, width, device=device, dtype=dtype)
        return partial(F.linear, x, torch.randn(out, width, device=device, dtype=dtype))

    return {
        f"{rows} x {width} x {out}": (product(rows, width, out), 2 * rows * width * out)
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


def num_bytes(model: nn.Module) -> int:
    """Count the bytes of all parameters and buffers."""
    return sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))


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


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Name what figures depend on besides the code."""
    cpu = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def markdown_table(
    columns: Mapping[str, tuple[str, str, float]], records: Sequence[Mapping[str, Any]]
) -> str:
    """Format records as a Markdown table that is aligned as text, too.

    `columns` holds title, number format and factor by key; those without any value are left out.
    """
    cells = []
    for key, (title, kind, factor) in columns.items():
        values = [record.get(key) for record in records]
        if any(value is not None for value in values):
            shown = [_cell(value, kind, factor) for value in values]
            width = max(map(len, (title, *shown)))
            cells.append(
                [title.rjust(width), "-" * (width - 1) + ":", *(x.rjust(width) for x in shown)]
            )
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*cells, strict=True))


def _cell(value: Any, kind: str, factor: float) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value * factor:{kind}}"
