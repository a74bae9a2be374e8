"""What each part of scripts/gpu_check.py measures, in seconds and bytes unless a name says else."""

import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.cuda_graphs import GraphCache
from models.fast import FastPath, Rows
from models.transformer import KVCache, split_heads
from performance import timing as benchmark
from performance.cost import step_rows
from performance.timing import Calls, Effort
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

    def keep_medians(
        self, seconds: float = 15.0, each: int = 1, **calls: Callable[[], object]
    ) -> None:
        """Time warm calls in turn, each so many of one kind; keep what one takes as `NAME_s`."""
        effort = Effort(self.device, 2, 0) if self.quick else Effort(self.device, 3, seconds)
        times = benchmark.time_in_turn(calls, effort)
        self.keep(**{f"{name}_s": statistics.median(x) / each for name, x in times.items()})

    def compare(self, calls: Calls) -> None:
        """Keep what each takes, on a GPU its replay as a graph."""
        times = 1 if self.quick else REPLAYS
        for name, call in calls.items():
            with self.attempt(name), torch.no_grad():
                if self.device.type == "cuda":
                    call = captured(call, self.device)
                call()
                repeated = {name: lambda call=call: [call() for _ in range(times)]}
                self.keep_medians(2.0, times, **repeated)

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


def captured(function: Callable[[], torch.Tensor], device: torch.device) -> Callable[[], object]:
    """Capture a function; return what launches it."""
    graphs = GraphCache(1)
    graphs.run("variant", lambda _: function(), torch.zeros(1, device=device))
    return replay_of(graphs)


def replay_of(graphs: GraphCache) -> Callable[[], None]:
    """Return what launches the only graph of a cache."""
    (kept,) = graphs.captured.values()
    return lambda: kept.graph.replay()  # and keeps alive what the graph reads


@contextmanager
def timed_captures(check: Check) -> Iterator[None]:
    """Keep what compiling, and the parts of every capture in the block, took."""
    capture, captures = GraphCache._capture, []

    def timed(function: Callable[..., Any], tell: Callable[[float], None]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            output = function(*arguments)
            if not torch.cuda.is_current_stream_capturing():
                torch.cuda.synchronize(check.device)
            tell(time.perf_counter() - started)
            return output

        return call

    def timed_capture(cache: GraphCache, function: Callable[..., Any], inputs: Any) -> Any:
        seconds: list[float] = []
        kept = capture(cache, timed(function, seconds.append), inputs)
        timed(kept.graph.instantiate, seconds.append)()
        names = ("first_run_s", "second_run_s", "capture_s", "instantiate_s")
        captures.append(dict(zip(names, seconds, strict=True)))
        with check.attempt("number of nodes"):
            from cuda.bindings import runtime

            graph = runtime.cudaGraph_t(kept.graph.raw_cuda_graph())
            captures[-1]["nodes"] = int(runtime.cudaGraphGetNodes(graph)[-1])
        check.keep(captures=captures)  # of the generation, then of the VQ decoder
        return kept

    compiled = timed(Rows.compiled, lambda seconds: check.keep(compile_s=seconds))
    with (
        patch.object(GraphCache, "_capture", timed_capture),
        patch.object(Rows, "compiled", compiled),
        patch.object(torch.cuda, "CUDAGraph", partial(torch.cuda.CUDAGraph, keep_graph=True)),
    ):
        yield


def device(check: Check) -> None:
    """Which machine this is, what it does at best, and which attention it prefers."""
    check.keep(**benchmark.describe_machine(check.device), cudnn=torch.backends.cudnn.version())
    _, keys, values = split_heads(torch.zeros(2, 257, 3072, dtype=BF16, device=check.device), 16)
    chosen = torch._fused_sdp_choice(keys[:, :, :20], keys[:, :, :200], values[:, :, :200])
    check.keep(attention=SDPBackend(chosen).name)
    if check.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(check.device)
        check.keep(free_bytes=free, total_bytes=total)
        rates = benchmark.measure_rates(check.device, benchmark.NAMES)
        check.keep(bytes_per_s=rates[BF16].bandwidth)
        check.keep(**{f"{benchmark.NAMES[x]}_flop_per_s": y.rate for x, y in rates.items()})


def sampling(check: Check, batch_size: int) -> None:
    """From labels to images: the first call taken apart, medians, the kernels of a replay."""
    case = check.case(BF16, min(batch_size, 2) if check.quick else batch_size)
    with timed_captures(check):
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
            replay = replay_of(FastPath.of(case.model).graphs)
            check.keep_medians(replay=replay)
        host = []
        for _ in range(30):
            torch.cuda.synchronize(check.device)
            started = time.perf_counter()
            generation()  # returns when the GPU has its work
            host.append(time.perf_counter() - started)
        check.keep(host_s=statistics.median(host))
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
    """Ways to do the same, one against the other: attention, products, VQ decoder."""
    case, device = check.case(BF16, 1), check.device
    steps, blocks, width = step_rows(case.sizes), case.model.blocks, case.model.pos_embed.shape[-1]
    heads = blocks[0].attn.num_heads
    random = partial(torch.randn, device=device, dtype=BF16)
    qkv = [split_heads(random(2, sum(rows), 3 * width), heads) for rows in steps]
    shape = (1, 2, 2, heads, 1 + sum(case.sizes), width // heads)
    cache = KVCache(torch.empty(shape, dtype=BF16, device=device))

    def attention() -> torch.Tensor:  # of a layer, in all steps
        cache.length = 0
        for (context, _), x in zip(steps, qkv, strict=True):
            seen = cache.attend(0, x, context)
            cache.advance(context)
        return seen

    ways = {"attention_default": attention}
    others = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)  # cuDNN's knows no single key
    for name in ("CUDNN", "FLASH", "EFFICIENT") if device.type == "cuda" else ("FLASH",):
        order = list(dict.fromkeys((SDPBackend.__members__[f"{name}_ATTENTION"], *others)))
        first = sdpa_kernel(order, set_priority=True)  # anew at every call
        ways[f"attention_{name.lower()}"] = first(attention)
    check.compare(ways)

    # Each layer's product by rows, with each of the weights, which are read from memory for it.
    bandwidth = benchmark.measure_rates(device, [BF16])[BF16].bandwidth
    for name, out, inner in (("qkv", 3, 1), ("proj", 1, 1), ("fc1", 4, 1), ("fc2", 1, 4)):
        weights = [random(out * width, inner * width) for _ in blocks]
        check.keep(**{f"{name}_floor_s": len(blocks) * weights[0].nbytes / bandwidth})
        for rows in (4, 80) if check.quick else (4, 12, 24, 48, 80, 256, 1024, 5120):
            x = random(rows, inner * width)
            check.compare(
                {f"{name}_{rows}": lambda x=x, w=weights: [F.linear(x, y) for y in w][-1]}
            )

    # The VQ decoder of one image and of several; last, as it compiles.
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    as_is, nchw = (DecoderCopy(case.tokenizer, dtype) for _ in range(2))
    nchw.decoder.to(memory_format=torch.contiguous_format)
    decoders = {"as_is": as_is, "cudnn_benchmark": as_is, "nchw": nchw}
    if device.type == "cuda":
        decoders["compiled"] = torch.compile(as_is)
    for name, decoder in decoders.items():
        tuned = name == "cudnn_benchmark"
        flags = torch.backends.cudnn.flags(enabled=True, benchmark=tuned, allow_tf32=False)
        for batch_size in (1, 2 if check.quick else 16):
            codes = torch.zeros(batch_size, sum(case.sizes), dtype=torch.int64, device=device)
            check.compare({f"vq_{name}_{batch_size}": flags(partial(decoder, codes))})


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
