"""Which graphs are kept, what goes in and out, what fits, and what a failed capture leaves."""

import gc
import itertools
import weakref
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models import cuda_graphs
from models.cuda_graphs import WARM_UP_RUNS, CaptureError, GraphCache


class Recording(TorchDispatchMode):
    """Stands for a CUDA graph: its replays repeat the operations, into the same tensors."""

    def __init__(self, resets):
        super().__init__()
        self.reset, self.steps = partial(resets.append, True), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("it waits")
        step = partial(function, *args, **kwargs or {})
        self.steps.append((step(), step))
        return self.steps[-1][0]

    def replay(self):
        for result, step in self.steps:
            result.copy_(step())


class Captures211:
    """Stands for what PyTorch 2.11 does around captures, as far as its library shows without a GPU.

    A capture that waits for the GPU cannot be ended: the allocator then goes on recording.
    """

    def __init__(self, monkeypatch):
        self.recording, self.released, self.entered, self.resets = [], [], [], []
        cpu = torch.device("cpu")
        stream = SimpleNamespace(device=cpu, device_index=0, wait_stream=lambda other: None)
        for name, fake in {
            "CUDAGraph": lambda: Recording(self.resets),
            "Stream": lambda device: stream,
            "current_stream": lambda: stream,
            "device": nullcontext,
            "graph": self.graph,
            "graph_pool_handle": object,
            "stream": nullcontext,
        }.items():
            monkeypatch.setattr(cuda_graphs.torch.cuda, name, fake)
        for name, fake in (("endAllocateToPool", self.end), ("releasePool", self.release)):
            monkeypatch.setattr(torch._C, f"_cuda_{name}", fake, raising=False)

    def end(self, device, pool):
        if pool not in self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.recording.remove(pool)

    def release(self, device, pool):
        self.released.append(pool)

    @contextmanager
    def graph(self, graph, pool=None, stream=None, capture_error_mode="global"):
        pool = pool or object()
        assert pool not in self.recording
        self.recording.append(pool)
        self.entered.append(pool)
        try:
            with graph:
                yield
        except Exception as error:
            if "waits" in str(error):  # raised while the first is handled, as `__exit__` does
                raise RuntimeError("capture was invalidated")  # noqa: B904
            self.end(0, pool)
            raise
        self.end(0, pool)


@pytest.fixture
def cuda(monkeypatch):
    return Captures211(monkeypatch)


@pytest.fixture
def captures(device, request):
    """The stand-in, and on a GPU none."""
    return None if device == "cuda" else request.getfixturevalue("cuda")


def waiting(x):
    return (x + 1).sum().item() * x


@pytest.mark.parametrize(
    ("kept", "held"),
    [(2, [0, 1, 1, 1]), (1, [0] * 6)],  # a pool ends with its only graph; the next begins another
)
def test_replays_follow_their_inputs_and_the_least_recently_used_is_dropped(
    kept, held, captures, device
):
    cache, seen = GraphCache(kept), []

    def product(x, y):
        seen.append(len(cache))
        return (x @ y.mT).softmax(-1)

    inputs = [torch.randn(n, 4, device=device) for n in (2, 3, 2, 4, 2, 3)]
    results = [cache.run("product", product, x, -x) for x in inputs]
    for x, result in zip(inputs, results, strict=True):  # not overwritten by a later replay
        torch.testing.assert_close(result, (-x @ x.mT).softmax(-1))
    assert seen[:: WARM_UP_RUNS + 1] == held  # dropped before the next is captured
    cache.clear()
    assert len(cache) == 0
    assert torch.equal(cache.run("negative", torch.neg, x), -x)


def test_other_inputs_and_settings_of_pytorch_are_other_graphs(cuda):
    cache, x = GraphCache(9), torch.zeros(1)
    for inputs in (x, torch.zeros(3), torch.zeros(3, dtype=torch.int64)):
        result = cache.run("negative", torch.neg, inputs)
        assert (result.shape, result.dtype) == (inputs.shape, inputs.dtype)
    assert len(cache) == 3
    with torch.backends.cudnn.flags(deterministic=True):
        cache.run("negative", torch.neg, x)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if before == "highest" else "highest")
    try:
        cache.run("negative", torch.neg, x)
    finally:
        torch.set_float32_matmul_precision(before)
    cache.run("negative", torch.neg, x)
    assert len(cuda.entered) == len(cache) == 5


def test_autocast_casts_again_at_every_replay(captures, device):
    weight = torch.nn.Parameter(torch.ones(8, 8, device=device))
    x, cache = torch.ones(2, 8, device=device), GraphCache(1)
    for value in (1.0, 2.0):
        with torch.no_grad():
            weight.fill_(value)
        with torch.autocast(device, torch.bfloat16):
            result = cache.run("linear", lambda x: torch.nn.functional.linear(x, weight), x)
        assert result.dtype == torch.bfloat16
        assert (result == 8 * value).all()


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (RuntimeError("no\nmore lines"), CaptureError, "it cannot be captured: no"),
        (RuntimeError("it waits"), CaptureError, "it cannot be captured: it waits"),
        (torch.OutOfMemoryError("waits: full"), torch.OutOfMemoryError, "waits: full"),
        (torch.OutOfMemoryError("full"), torch.OutOfMemoryError, "full"),
        (ValueError("bad"), ValueError, "bad"),
    ],
)
def test_what_cannot_be_captured_says_what_the_function_did(cuda, error, kind, line):
    calls = itertools.count()

    def function(x):
        if next(calls) >= WARM_UP_RUNS:
            raise error
        return x

    with pytest.raises((RuntimeError, ValueError)) as caught:
        GraphCache(1).run("fails", function, torch.ones(2))
    assert (type(caught.value), str(caught.value)) == (kind, line)
    assert kind is CaptureError or caught.value is error
    assert len(cuda.resets) == 2  # of the failed graph, and of one that puts the generator right
    # Where the capture ended, by the graph's `reset`: another release would take the pool from the
    # other graphs.
    assert cuda.released == cuda.entered[:1] * ("waits" in str(error))
    assert cuda.recording == []


@pytest.mark.parametrize("others", [0, 1])
def test_a_failed_capture_keeps_no_input_and_does_not_stand_in_the_way(others, captures, device):
    cache, x, given = GraphCache(4), torch.ones(4, device=device), []

    def function(x):
        given.append(weakref.ref(x))
        return waiting(x)

    for _ in range(others):
        cache.run("before", torch.neg, x)
    stream = torch.cuda.current_stream()
    gc.disable()  # which would find an error that its traceback leads back to
    try:
        with suppress(CaptureError):
            cache.run("waits", function, x)
        assert captures is None or given[WARM_UP_RUNS]() is None
    finally:
        gc.enable()
    assert len(cache) == others
    if captures:
        failed, trivial = captures.entered[others:]  # the second puts the generator right
        assert captures.entered[:others] == [failed] * others  # graphs share their pool
        assert (captures.released, captures.recording) == ([failed], [])
    else:  # with new memory
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    assert torch.cuda.current_stream() == stream
    # PyTorch's own random numbers go on without another capture; their generator took part.
    assert 0 < torch.rand(1000, device=device).mean().item() < 1
    for name in ("before", "after", "after that"):
        assert torch.equal(cache.run(name, torch.neg, 2 * x), -2 * x)
    assert 0 < torch.rand(1000, device=device).mean().item() < 1
    if captures:
        after, another = captures.entered[-2:]
        assert after == another and after not in (failed, trivial)


def test_no_capture_enters_the_pool_of_graphs_that_are_gone(cuda):
    """After a failure the graphs of a cache lie in two pools, and one may lose its last."""
    cache, x = GraphCache(2), torch.ones(2)
    cache.run("first", torch.neg, x)
    with pytest.raises(CaptureError):
        cache.run("waits", waiting, x)
    for name in ("second", "first", "third"):  # in the place of the second
        cache.run(name, torch.neg, x)
    assert len(set(cuda.entered)) == len(cuda.entered) - 1  # all but the one that failed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_failed_captures_keep_no_memory_and_a_lack_of_it_passes_unchanged():
    """Those of a cache with another graph, whose pool they enter."""
    cache, x, reserved = GraphCache(2), torch.ones(2**20, device="cuda"), []
    cache.run("before", torch.neg, x)
    for _ in range(6):
        with pytest.raises(CaptureError):
            cache.run("waits", waiting, x)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert max(reserved) <= reserved[0] + 2**21
    with pytest.raises(torch.OutOfMemoryError):
        cache.run("huge", lambda x: x[:1].expand(2**46).clone(), x)
    assert len(cache) == 1
    assert torch.equal(cache.run("before", torch.neg, x), -x)
