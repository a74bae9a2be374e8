"""CUDA graphs, by PyTorch's notes on them: record kernels once, launch all with a single call."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.cuda import Stream

from util.errors import is_out_of_memory

logger = logging.getLogger(__name__)

# Runs before a capture: libraries load their kernels, make their handles and choose algorithms.
WARM_UP_RUNS = 2
Pool = tuple[int, int]


class WeightState:
    """Weights of one model as they were when copied, in a fixed order.

    Changes are seen by the tensors' version counters; writes through `.data` do not count there.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        # Aliases, so that no other tensor can get the same address.
        self._aliases = [weight.detach() for weight in weights]
        self._versions = _versions(weights)

    def same_tensors(self, weights: Sequence[Tensor]) -> bool:
        """Whether `weights` lie where they lay, whatever they hold."""
        return len(weights) == len(self._aliases) and all(
            weight.data_ptr() == alias.data_ptr() and weight.dtype == alias.dtype
            for weight, alias in zip(weights, self._aliases, strict=True)
        )

    def is_current(self, weights: Sequence[Tensor]) -> bool:
        """Whether `weights` are the same tensors, and unchanged as far as can be told."""
        told = None not in self._versions
        return told and self._versions == _versions(weights) and self.same_tensors(weights)


def _versions(weights: Sequence[Tensor]) -> list[int | None]:
    """How often each was written to; tensors of inference mode do not count."""
    return [None if weight.is_inference() else weight._version for weight in weights]


class CaptureError(RuntimeError):
    """A function cannot be captured; the message is one line that says why."""


@dataclass(frozen=True)
class _Captured:
    """A graph with the tensors that it reads and writes, which live as long as it does."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor
    pool: Pool | None = None


class GraphCache:
    """The `max_graphs` functions last used, captured; they share the memory of intermediates.

    Use it from one thread and one CUDA stream, with inputs on one device (`clear` before another):
    what the graphs share is safe because no two of them ever run at once.
    """

    def __init__(self, max_graphs: int) -> None:
        self._max_graphs = max_graphs
        self.captured: OrderedDict[Hashable, _Captured] = OrderedDict()
        # Captures share the memory of a pool only if they share the stream as well.
        self._pool: Pool | None = None
        self._side_stream: Stream | None = None

    def __len__(self) -> int:
        return len(self.captured)

    @torch.no_grad()
    def run(self, key: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Replay `function` as captured for `key`, capturing it first if it is new.

        The inputs lie on one CUDA device, the output has memory of its own. A `CaptureError` is
        about what cannot be captured; of a graph that does not fit nothing is kept.

        The key names what `function` computes; shapes and dtypes of the inputs and PyTorch's own
        settings (autocast, TF32, ...) need not be part. The function is called a few times with
        static copies of the inputs when it is captured, and never again for this key. It may not
        wait for the GPU, and what it reads and writes besides the inputs must stay alive at its
        address as long as the graph: new values there are seen, another tensor is not.
        """
        signature = (key, _settings(), *((x.shape, x.dtype, x.device) for x in inputs))
        if signature not in self.captured:
            logger.info("capturing a CUDA graph: %s", key)
            while len(self.captured) >= self._max_graphs:
                self.captured.popitem(last=False)
            self.captured[signature] = self._capture(function, inputs)
        self.captured.move_to_end(signature)
        captured = self.captured[signature]
        for static, new in zip(captured.inputs, inputs, strict=True):
            static.copy_(new)
        captured.graph.replay()
        # The memory of the output belongs to the pool: the next replay may overwrite it.
        return captured.output.clone()

    def clear(self) -> None:
        self.captured.clear()

    def _capture(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> _Captured:
        device = inputs[0].device
        # Tensors made in inference mode could not be written to outside it.
        with torch.inference_mode(False):
            static = tuple(torch.empty_like(x) for x in inputs)
        for new, given in zip(static, inputs, strict=True):
            new.copy_(given)
        # Autocast would free its cast weights when it ends; without its cache they are part of
        # the graph, cast anew at every replay.
        kind = device.type
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        autocast = torch.autocast(kind, dtype, enabled, cache_enabled=False)
        # A pool ends with its last graph, and no other capture enters one where a capture failed.
        pool, self._pool = self._pool, None
        if pool not in {captured.pool for captured in self.captured.values()}:
            pool = torch.cuda.graph_pool_handle()
        if self._side_stream is None or self._side_stream.device != device:
            self._side_stream = torch.cuda.Stream(device)
        with torch.cuda.device(device), autocast:
            stream = torch.cuda.current_stream()
            self._side_stream.wait_stream(stream)
            try:
                with torch.cuda.stream(self._side_stream):
                    for _ in range(WARM_UP_RUNS):
                        function(*static)
                    captured = _record(function, static, pool, self._side_stream)
            finally:
                stream.wait_stream(self._side_stream)
        self._pool = pool
        return captured


def _settings() -> tuple[Hashable, ...]:
    """What decides at the capture, and not at a replay, how PyTorch computes."""
    backends = torch.backends
    return (
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        # By these names: once a user has set one, PyTorch refuses to read the older ones.
        backends.cuda.matmul.fp32_precision == "tf32",
        backends.cudnn.conv.fp32_precision == "tf32",
        backends.cudnn.deterministic,
        backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        backends.cuda.flash_sdp_enabled(),
        backends.cuda.mem_efficient_sdp_enabled(),
        backends.cuda.cudnn_sdp_enabled(),
        backends.cuda.math_sdp_enabled(),
    )


def _record(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], pool: Pool, stream: Stream
) -> _Captured:
    """Capture one call; nothing is computed yet."""
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads (NCCL's watchdog, memory pinning) may go on calling CUDA meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            output = function(*inputs)
    except Exception as error:
        graph.reset()  # a traceback may keep it: give the memory back now
        _tidy_up(pool, stream)
        # What the function did wrong comes first; the end of the capture then fails as well.
        reason, reasons = None, [error.__context__, error]
        try:
            reasons = [one for one in reasons if isinstance(one, RuntimeError)]
            for reason in reasons:
                if is_out_of_memory(reason):
                    raise reason from None
            if not isinstance(error, RuntimeError):
                raise
            line = next(iter(str(reasons[0]).splitlines()), type(reasons[0]).__name__)
            raise CaptureError(f"it cannot be captured: {line}") from error
        finally:
            # An error that its own traceback leads to keeps the inputs until garbage is collected.
            del reason, reasons
    return _Captured(graph, inputs, output, pool)


def _tidy_up(pool: Pool, stream: Stream) -> None:
    """Undo what a capture that failed leaves behind in older PyTorch (2.11; not in 2.15).

    If CUDA refuses to end it, the allocator goes on recording into the pool, and refuses to record
    there again; the generator goes on as in a capture, and `torch.rand` raises.
    """
    with suppress(RuntimeError, AttributeError):  # "not currently recording": nothing to undo
        torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        torch._C._cuda_releasePool(stream.device_index, pool)
    # The end of a capture that succeeds puts the generator right.
    with suppress(RuntimeError):
        x = torch.empty(1, device=stream.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            x.zero_()
        graph.reset()
