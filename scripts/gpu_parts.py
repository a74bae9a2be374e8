"""What each part of scripts/gpu_check.py measures, in seconds and bytes unless a name says else."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.cuda_graphs import GraphCache
from models.fast import FastPath
from models.transformer import KVCache, split_heads
from performance import timing as benchmark
from performance.cost import step_rows
from performance.timing import Effort
from scripts import benchmark_sampling, benchmark_training
from tokenizers.fast_decoder import DecoderCopy
from tokenizers.vq_model import VQModel
from util import distributed
from util.files import write_json

logger = logging.getLogger(__name__)

BF16 = torch.bfloat16
# Replays that are timed as one: what a launch takes is small beside them.
REPLAYS = 10


@dataclass
class Check:
    """What is measured, and what was found so far."""

    device: torch.device
    quick: bool  # a tiny network, few calls
    output: Path  # JSON of the figures and errors, written whenever there are more
    figures: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

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

    def medians(self, seconds: float = 15.0, **calls: Callable[[], object]) -> dict[str, float]:
        """Time warm calls in turn, for so many seconds; what each takes, by its name and `_s`."""
        effort = Effort(self.device, 2, 0) if self.quick else Effort(self.device, 3, seconds)
        median, _ = benchmark.time_in_turn(calls, effort)
        return {f"{name}_s": seconds for name, seconds in median.items()}

    @torch.no_grad()
    def graph_median(self, function: Callable[[], torch.Tensor]) -> float:
        """Time a call, on a GPU its replay as a graph."""
        call: Callable[[], object] = function
        if self.on_gpu:
            graphs = GraphCache(1)
            graphs.run("variant", lambda _: function(), torch.zeros(1, device=self.device))
            call = replay_of(graphs)
        call()
        times = 1 if self.quick else REPLAYS
        return self.medians(2.0, all=lambda: [call() for _ in range(times)])["all_s"] / times

    def profile(self, call: Callable[[], object]) -> None:
        """Keep the kernels of a call that took the longest (on a CPU operations), and their sum."""
        kind, took = DeviceType.CPU, "self_cpu_time_total"
        if self.on_gpu:
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


def replay_of(graphs: GraphCache) -> Callable[[], None]:
    """Return what launches the only graph of a cache."""
    (captured,) = graphs._graphs.values()
    return captured.graph.replay


def device(check: Check) -> None:
    """Which machine this is, and what it does at best."""
    check.keep(**benchmark.describe_machine(check.device), cudnn=torch.backends.cudnn.version())
    if check.on_gpu:
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
    check.keep(**check.medians(call=case.fast, generation=generation, **parts))
    images_per_s = case.batch_size / check.figures["call_s"]
    check.keep(images_per_s=images_per_s, vq_dtype=str(case.decoder.dtype))
    if check.on_gpu:
        with check.attempt("replay"):
            replay = replay_of(FastPath.of(case.model).graphs)
            check.keep(**check.medians(replay=replay))
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


def variants(check: Check) -> None:
    """Ways to do the same, one against the other: attention and VQ decoder."""
    case, device = check.case(BF16, 1), check.device
    steps = step_rows(case.sizes)
    heads, width = case.model.blocks[0].attn.num_heads, case.model.norm.weight.numel()
    random = partial(torch.randn, device=device, dtype=BF16)
    qkv = [split_heads(random(2, sum(rows), 3 * width), heads) for rows in steps]
    cache = KVCache(random(1, 2, 2, heads, 1 + sum(case.sizes), width // heads))

    def attention() -> torch.Tensor:  # of a layer, in all steps
        cache.length = 0
        for (context, _), x in zip(steps, qkv, strict=True):
            seen = cache.attend(0, x, context)
            cache.advance(context)
        return seen

    ways = {"attention_default": attention}
    others = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)  # cuDNN's knows no single key
    for name in ("CUDNN", "FLASH", "EFFICIENT") if check.on_gpu else ("FLASH",):
        order = list(dict.fromkeys((SDPBackend.__members__[f"{name}_ATTENTION"], *others)))
        first = sdpa_kernel(order, set_priority=True)  # anew at every call
        ways[f"attention_{name.lower()}"] = first(attention)

    # The VQ decoder of one image and of several; last, as it compiles.
    dtype = torch.float16 if check.on_gpu else torch.float32
    decoder = DecoderCopy(case.tokenizer, dtype)
    decoders = {"as_is": decoder, "cudnn_benchmark": decoder}
    if check.on_gpu:
        decoders["compiled"] = torch.compile(decoder)
    for name, decoder in decoders.items():
        tuned = name == "cudnn_benchmark"
        flags = torch.backends.cudnn.flags(enabled=True, benchmark=tuned, allow_tf32=False)
        for batch_size in (1, 2 if check.quick else 16):
            codes = torch.zeros(batch_size, sum(case.sizes), dtype=torch.int64, device=device)
            ways[f"vq_{name}_{batch_size}"] = flags(partial(decoder, codes))

    for name, call in ways.items():
        with check.attempt(name):
            check.keep(**{f"{name}_s": check.graph_median(call)})


PARTS: dict[str, Callable[[Check], None]] = {
    "device": device,
    "latency": partial(sampling, batch_size=1),
    "tokens": tokens,
    "throughput": partial(sampling, batch_size=64),
    "training": training,
    "variants": variants,
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
