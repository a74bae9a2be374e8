"""What each part of scripts/gpu_check.py measures, in seconds and bytes unless a name says else."""

import logging
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType

from models.fast import FastPath
from performance import timing as benchmark
from performance.timing import Effort
from scripts import benchmark_sampling, benchmark_training
from tokenizers.vq_model import VQModel
from util import distributed
from util.files import write_json

logger = logging.getLogger(__name__)

BF16 = torch.bfloat16


@dataclass
class Check:
    """What is measured, and what was found so far."""

    device: torch.device
    quick: bool  # a tiny network, few calls
    output: Path  # JSON of the figures and errors, written whenever there are more
    figures: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def keep(self, **figures: Any) -> None:
        """Keep numbers and texts, or tables: lists of records."""
        self.figures |= figures
        write_json({"figures": self.figures, "errors": self.errors}, self.output)

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """What fails in the block is one error of the part, which goes on behind it."""
        try:
            yield
        except Exception as error:
            logger.exception("%s", name)
            text = next(iter(str(error).splitlines()), "")
            self.errors.append(f"{name}: {type(error).__name__}: {text}")
            self.keep()

    def case(self, dtype: torch.dtype, batch_size: int) -> benchmark_sampling.Case:
        """LPD-L at 256 px in 20 steps, or a tiny network, and its tokenizer; random weights."""
        row, sizes = benchmark_sampling.ROWS["lpd_l_256_20"], {}
        if self.quick:
            row = benchmark_sampling.Row("lpd_tiny", 64, 4, 3.0)
            sizes = {"codebook_size": 64, "ch": 32, "num_res_blocks": 1}
        torch.manual_seed(0)
        tokenizer = benchmark.random_weights(lambda: VQModel(**sizes), self.device)
        model = benchmark_sampling.random_model(row, tokenizer, dtype, self.device)
        return benchmark_sampling.Case(row, model, tokenizer, dtype, batch_size)

    def keep_medians(self, **calls: Callable[[], object]) -> None:
        """Time warm calls in turn; keep what each takes, by its name and `_s`."""
        effort = Effort(self.device, 2, 0) if self.quick else Effort(self.device, 3, 15.0)
        times = benchmark.time_in_turn(calls, effort)
        self.keep(**{f"{name}_s": statistics.median(x) for name, x in times.items()})

    def profile(self, call: Callable[[], object]) -> None:
        """Keep the kernels of a call that took the longest (on a CPU operations), and their sum."""
        kind, took = DeviceType.CPU, "self_cpu_time_total"
        if self.device.type == "cuda":
            kind, took = DeviceType.CUDA, "self_device_time_total"
        with torch.profiler.profile() as profiler:
            benchmark.seconds_of(call, self.device)
        found = [
            {"sum_us": round(getattr(x, took), 1), "count": x.count, "kernel": x.key[:80]}
            for x in profiler.key_averages()
            if x.device_type == kind and not getattr(x, "is_user_annotation", False)
        ]
        found.sort(key=lambda record: -record["sum_us"])
        count, total = (sum(record[name] for record in found) for name in ("count", "sum_us"))
        self.keep(num_kernels=count, kernels_s=total / 1e6, kernels=found[:25])


def device(check: Check) -> None:
    """Which machine this is, and what it does at best."""
    check.keep(**benchmark.describe_machine(check.device), cudnn=torch.backends.cudnn.version())
    if check.device.type == "cuda":
        rates = benchmark.measure_rates(check.device, benchmark.NAMES)
        check.keep(bytes_per_s=rates[BF16].bandwidth)
        check.keep(**{f"{benchmark.NAMES[x]}_flop_per_s": y.rate for x, y in rates.items()})


def sampling(check: Check, batch_size: int) -> None:
    """From labels to images: the first call, medians, the kernels of a replay."""
    case = check.case(BF16, min(batch_size, 2) if check.quick else batch_size)
    check.keep(**case.warm_up())
    replay = generation = partial(case.generate, "fast")
    few = case.tokens[:16]
    case.decoder(few)
    parts = {"vq": lambda: case.decoder(case.tokens), "vq_16": lambda: case.decoder(few)}
    check.keep_medians(call=case.fast, generation=generation, **parts)
    images_per_s = case.batch_size / check.figures["call_s"]
    check.keep(images_per_s=images_per_s, vq_dtype=str(case.decoder.dtype))
    if check.device.type == "cuda":
        with check.attempt("replay"):
            (captured,) = FastPath.of(case.model).graphs.captured.values()
            replay = captured.graph.replay
            check.keep_medians(replay=replay)
    check.profile(replay)


def tokens(check: Check) -> None:
    """Whether the fast path's tokens are the plain one's, and how well the VQ decoder agrees."""
    for dtype in (torch.float32, BF16):
        case = check.case(dtype, 2)
        equal = (case.tokens == case.generate("plain")).float().mean().item()
        check.keep(**{f"{str(dtype)[6:]}_equal_share": equal})
        if dtype == torch.float32 and equal < 1:
            check.errors.append(f"float32: {equal:.4%} of tokens are the plain sampler's, not all")
    check.keep(vq_agreement=case.decoder.agreement, vq_dtype=str(case.decoder.dtype))


def training(check: Check) -> None:
    """A training step as `main_lpd.py --bf16` runs it, its programs and its kernels."""
    from torch._dynamo.utils import counters, get_compilation_metrics

    name, batch_size, effort = "lpd_l_256", 64, Effort(check.device, plain=False)
    if check.quick:
        name, batch_size = "lpd_tiny_32", 2
        effort = Effort(check.device, rounds=1, seconds=0, plain=False)
    rate = benchmark.measure_rates(check.device, [BF16])[BF16].rate
    record, calls = benchmark_training.measure(name, batch_size, effort, rate)
    check.keep(**{name: x for name, x in record.items() if name != "times_s"})
    again = sum(bool(metrics.recompile_reason) for metrics in get_compilation_metrics())
    check.keep(graphs=counters["stats"]["unique_graphs"], recompiles=again)
    check.profile(calls["fast"])


PARTS: dict[str, Callable[[Check], None]] = {
    "device": device,
    "latency": partial(sampling, batch_size=1),
    "tokens": tokens,
    "throughput": partial(sampling, batch_size=64),
    "training": training,
}


def measure(name: str, device_name: str, quick: bool, output: Path) -> int:
    """Run one part and write what it finds; 1 if anything in it failed."""
    device = distributed.resolve_device(device_name, distributed.Launch())
    check = Check(device, quick, output)
    check.keep()
    with check.attempt(name):
        PARTS[name](check)
    check.keep()
    return 1 if check.errors else 0
