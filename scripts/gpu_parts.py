"""What each part of scripts/gpu_check.py measures, in seconds and bytes unless a name says else."""

import logging
import statistics
import time
from argparse import Namespace
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
from models.fast import FastPath, NetworkWeights
from models.lpd import lpd_l, lpd_tiny
from models.transformer import KVCache, split_heads
from performance import generation, timing
from performance.cost import step_rows
from performance.timing import Calls, Effort
from performance.training import measure as measure_training
from tokenizers.fast_decoder import DecoderCopy
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

    def case(self, dtype: torch.dtype, batch_size: int) -> generation.Case:
        """LPD-L at 256 px in 20 steps, or a tiny network, and its tokenizer; random weights."""
        row, sizes = generation.Row("lpd_l", 256, 20, 4.8), {}
        if self.quick:
            row = generation.Row("lpd_tiny", 64, 4, 3.0)
            sizes = {"codebook_size": 64, "ch": 32, "num_res_blocks": 1}
        torch.manual_seed(0)
        tokenizer = timing.random_weights(lambda: VQModel(**sizes), self.device)
        model = generation.random_model(row, tokenizer, dtype, self.device)
        return generation.Case(row, model, tokenizer, dtype, batch_size)

    def keep_medians(self, calls: Calls, seconds: float = 15.0, times: int = 1) -> None:
        """Time warm calls in turn, each so many of one kind; keep what one takes as `NAME_s`."""
        effort = Effort(self.device, 2, 0) if self.quick else Effort(self.device, 3, seconds)
        for name, taken in timing.time_in_turn(calls, effort).items():
            self.keep(**{f"{name}_s": statistics.median(taken) / times})

    def compare(self, calls: Calls) -> None:
        """Keep what each takes, on a GPU its replay as a graph."""
        times = 1 if self.quick else 10  # as one: what a launch takes is small beside them
        for name, call in calls.items():
            with self.attempt(name), torch.no_grad():
                if self.device.type == "cuda":
                    graphs = GraphCache(1)
                    graphs.run(name, lambda _, x=call: x(), torch.zeros(1, device=self.device))
                    call = replay_of(graphs)
                call()
                several = {name: lambda x=call: [x() for _ in range(times)]}
                self.keep_medians(several, 2.0, times)

    def profile(self, call: Callable[[], object]) -> None:
        """Keep the kernels of a call that took the longest (on a CPU operations), and their sum."""
        kind, took = DeviceType.CPU, "self_cpu_time_total"
        if self.device.type == "cuda":
            kind, took = DeviceType.CUDA, "self_device_time_total"
        with torch.profiler.profile() as profiler:
            timing.seconds_of(call, self.device)
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
    (kept,) = graphs.captured.values()
    return lambda: kept.graph.replay()  # and keeps alive what the graph reads


def device(check: Check) -> None:
    """Which machine this is, what it does at best, and which attention it prefers."""
    check.keep(**timing.describe_machine(check.device), cudnn=torch.backends.cudnn.version())
    _, keys, values = split_heads(torch.zeros(2, 257, 3072, dtype=BF16, device=check.device), 16)
    chosen = torch._fused_sdp_choice(keys[:, :, :20], keys[:, :, :200], values[:, :, :200])
    check.keep(attention=SDPBackend(chosen).name)
    if check.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(check.device)
        check.keep(free_bytes=free, total_bytes=total)
        rates = timing.measure_rates(check.device, timing.NAMES)
        check.keep(bytes_per_s=rates[BF16].bandwidth)
        check.keep(**{f"{timing.NAMES[x]}_flop_per_s": y.rate for x, y in rates.items()})


def sampling(check: Check, batch_size: int) -> None:
    """From labels to images: the first calls, medians of the whole and its parts, the kernels."""
    case = check.case(BF16, min(batch_size, 2) if check.quick else batch_size)
    fast_path, generate = FastPath.of(case.model), partial(case.generate, "fast")
    with case.autocast():  # weights are prepared, rows compiled
        prepare_s = timing.seconds_of(lambda: fast_path.network(case.model), check.device)
    prepare = partial(NetworkWeights.prepare, case.model, BF16, case.packed)
    check.keep(weights_s=timing.seconds_of(prepare, check.device))  # the first of the two alone
    calls: Calls = {"vq": lambda: case.decoder(case.tokens)}
    check.keep(prepare_s=prepare_s, **timing.warm_up(calls["vq"], check.device))
    few, replay = case.tokens[:16], generate
    calls |= {"vq_16": lambda: case.decoder(few), "head": case.head_and_drawing()}
    for call in calls.values():
        call()
    calls |= {"call": case.fast, "generation": generate}
    check.keep_medians(calls)
    images_per_s = case.batch_size / check.figures["call_s"]
    check.keep(images_per_s=images_per_s, vq_dtype=str(case.decoder.dtype))
    if check.device.type == "cuda":
        fast_path.graphs.clear()
        # A capture whose libraries have their plans: the first one's cold start has both.
        kept = partial(torch.cuda.CUDAGraph, keep_graph=True)  # or its capture instantiates it
        with patch.object(torch.cuda, "CUDAGraph", kept):
            check.keep(capture_s=timing.seconds_of(generate, check.device))  # and instantiated
        with check.attempt("replay"):
            (graph,) = (one.graph for one in fast_path.graphs.captured.values())
            check.keep(instantiate_s=timing.seconds_of(graph.instantiate, check.device))
            replay = replay_of(fast_path.graphs)
            check.keep_medians({"replay": replay})
        host = []
        for _ in range(30):
            torch.cuda.synchronize(check.device)
            started = time.perf_counter()
            generate()  # returns when the GPU has its work
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

    build, batch_size, effort = lpd_l, 64, Effort(check.device, plain_rounds=0)
    if check.quick:
        build, batch_size = partial(lpd_tiny, img_size=32, vqgan_stride=4, vqgan_vocab_size=256), 2
        effort = Effort(check.device, rounds=1, seconds=0, plain_rounds=0)
    record, calls = measure_training(build, batch_size, effort)
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
            cache.length += context
        return seen

    ways = {"attention_default": attention}
    others = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)  # cuDNN's knows no single key
    for name in ("CUDNN", "FLASH", "EFFICIENT") if device.type == "cuda" else ("FLASH",):
        order = list(dict.fromkeys((SDPBackend.__members__[f"{name}_ATTENTION"], *others)))
        first = sdpa_kernel(order, set_priority=True)  # anew at every call
        ways[f"attention_{name.lower()}"] = first(attention)
    check.compare(ways)

    # Each layer's product by rows, with each of the weights, which are read from memory for it.
    bandwidth = timing.measure_rates(device, [BF16])[BF16].bandwidth
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


def measure(args: Namespace) -> int:
    """Run the part `args.measure` and write what it finds; 1 if anything in it failed."""
    device = distributed.resolve_device(args, distributed.Launch())
    check = Check(device, args.quick, args.output)
    check.keep()
    with check.attempt(args.measure):
        PARTS[args.measure](check)
    return 1 if check.errors else 0
