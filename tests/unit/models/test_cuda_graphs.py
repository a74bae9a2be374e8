"""Which graphs are kept and what goes in and out; the capture itself on a GPU; what fits."""

import gc
import itertools
import weakref
from contextlib import contextmanager, nullcontext, suppress
from types import SimpleNamespace

import pytest
import torch

from models import cuda_graphs
from models.cuda_graphs import CaptureError, GraphCache, _Captured

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def captures(monkeypatch):
    """How many graphs were held at each capture, which stands for one of a GPU."""
    held = []

    def capture(cache, function, inputs):
        held.append(len(cache))
        static = tuple(x.clone() for x in inputs)
        output = function(*static)
        replay = lambda: output.copy_(function(*static))  # noqa: E731
        return _Captured(SimpleNamespace(replay=replay), static, output)

    monkeypatch.setattr(GraphCache, "_capture", capture)
    return held


def test_graphs_are_replayed_with_new_inputs_and_the_least_recently_used_is_dropped(captures):
    cache, inputs = GraphCache(2), [torch.full((1,), float(n)) for n in range(6)]
    results = [cache.run(key, torch.neg, x) for key, x in zip("abacab", inputs, strict=True)]
    assert results == [-x for x in inputs]  # not overwritten by a later replay
    assert captures == [0, 1, 1, 1]  # c pushes out b, before it is captured
    cache.clear()
    assert len(cache) == 0


def test_other_inputs_and_settings_of_pytorch_are_other_graphs(captures):
    cache, x = GraphCache(9), torch.zeros(1)
    for inputs in (x, torch.zeros(3), torch.zeros(3, dtype=torch.int64)):
        result = cache.run("negative", torch.neg, inputs)
        assert (result.shape, result.dtype) == (inputs.shape, inputs.dtype)
    assert len(captures) == len(cache) == 3
    with torch.backends.cudnn.flags(deterministic=True):
        cache.run("negative", torch.neg, x)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if before == "highest" else "highest")
    try:
        cache.run("negative", torch.neg, x)
    finally:
        torch.set_float32_matmul_precision(before)
    cache.run("negative", torch.neg, x)
    assert len(captures) == len(cache) == 5


class Captures211:
    """Stands for what PyTorch 2.11 does around captures, as far as its library shows without a GPU.

    A capture that waits for the GPU cannot be ended: the allocator then goes on recording, and the
    generator capturing. Functions run at their capture, replays do nothing.
    """

    def __init__(self, monkeypatch):
        self.handles = itertools.count(1)
        self.recording, self.released, self.entered, self.reset = [], [], [], []
        self.generator_captures = False
        cpu = torch.device("cpu")
        stream = SimpleNamespace(device=cpu, device_index=0, wait_stream=lambda other: None)
        graph = SimpleNamespace(reset=lambda: self.reset.append(True), replay=lambda: None)
        for name, fake in {
            "CUDAGraph": lambda: graph,
            "Stream": lambda device: stream,
            "current_stream": lambda: stream,
            "device": nullcontext,
            "graph": self.graph,
            "graph_pool_handle": lambda: (0, next(self.handles)),
            "stream": nullcontext,
        }.items():
            monkeypatch.setattr(cuda_graphs.torch.cuda, name, fake)
        release = lambda device, pool: self.released.append(pool)  # noqa: E731
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", release, raising=False)

    def end(self, device, pool):
        if pool not in self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.recording.remove(pool)

    @contextmanager
    def graph(self, graph, pool=None, stream=None, capture_error_mode="global"):
        pool = pool or (next(self.handles), 0)
        if pool in self.recording:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.recording.append(pool)
        self.entered.append(pool)
        self.generator_captures = True
        try:
            yield
        except Exception as error:
            if "waits" in str(error):  # raised while the first is handled, as `__exit__` does
                raise RuntimeError("capture was invalidated")  # noqa: B904
            self.end_capture(pool)
            raise
        self.end_capture(pool)

    def end_capture(self, pool):
        self.end(0, pool)
        self.generator_captures = False


@pytest.fixture
def cuda(monkeypatch):
    return Captures211(monkeypatch)


def failing_when_captured(error):
    """A function that can be run, but not captured."""
    calls = itertools.count()

    def function(x):
        if next(calls) >= cuda_graphs.WARM_UP_RUNS:
            raise error
        return x

    return function


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
    with pytest.raises((RuntimeError, ValueError)) as caught:
        GraphCache(1).run("fails", failing_when_captured(error), torch.ones(2))
    assert (type(caught.value), str(caught.value)) == (kind, line)
    assert kind is CaptureError or caught.value is error
    assert cuda.reset
    # Where the capture ended, by the graph's `reset`: another release would take the pool from the
    # other graphs.
    assert cuda.released == cuda.entered[:1] * ("waits" in str(error))
    assert (cuda.recording, cuda.generator_captures) == ([], False)


def test_a_failed_capture_keeps_no_input_alive(cuda):
    """An error that its traceback leads back to would, until garbage is collected."""
    seen = []

    def function(x):
        seen.append(weakref.ref(x))
        if len(seen) > cuda_graphs.WARM_UP_RUNS:
            raise RuntimeError("not permitted")
        return x

    gc.disable()
    try:
        with suppress(CaptureError):
            GraphCache(1).run("fails", function, torch.ones(2))
        assert seen[-1]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("others", [0, 1])
def test_a_failed_capture_does_not_stand_in_the_way_of_later_ones(cuda, others):
    cache, x = GraphCache(4), torch.ones(2)
    for _ in range(others):
        cache.run("before", torch.neg, x)
    with pytest.raises(CaptureError):
        cache.run("waits", failing_when_captured(RuntimeError("it waits")), x)
    assert len(cache) == others
    failed, trivial = cuda.entered[others:]
    assert cuda.entered[:others] == [failed] * others  # graphs share their pool
    assert (cuda.released, cuda.recording, cuda.generator_captures) == ([failed], [], False)
    for name in ("after", "after that"):
        assert torch.equal(cache.run(name, torch.neg, x), -x)
    after, another = cuda.entered[others + 2 :]
    assert after == another
    assert after not in (failed, trivial)
    assert len(cache) == others + 2


def test_no_capture_enters_the_pool_of_graphs_that_are_gone(cuda):
    """After a failure the graphs of a cache lie in two pools, and one may lose its last."""
    cache, x = GraphCache(2), torch.ones(2)
    cache.run("first", torch.neg, x)
    with pytest.raises(CaptureError):
        cache.run("waits", failing_when_captured(RuntimeError("it waits")), x)
    cache.run("second", torch.neg, x)
    cache.run("first", torch.neg, x)
    cache.run("third", torch.neg, x)  # in the place of the second
    assert len(set(cuda.entered)) == len(cuda.entered) - 1  # all but the one that failed


# On a GPU


@needs_gpu
@pytest.mark.parametrize("kept", [1, 2])  # a pool ends with its only graph; the next begins another
def test_replays_follow_their_inputs_and_results_survive_others_and_dropped_graphs(kept):
    cache = GraphCache(kept)
    inputs = [torch.randn(n, 64, device="cuda") for n in (1, 2, 3, 1, 3, 3, 2)]
    results = [cache.run("product", lambda x, y: (x @ y.mT).softmax(-1), x, -x) for x in inputs]
    for x, result in zip(inputs, results, strict=True):
        torch.testing.assert_close(result, (-x @ x.mT).softmax(-1))
    assert len(cache) == kept
    cache.clear()
    assert torch.equal(cache.run("negative", torch.neg, x), -x)


@needs_gpu
@pytest.mark.parametrize("others", [0, 1])
def test_what_waits_for_the_gpu_cannot_be_captured(others):
    cache = GraphCache(2)
    x = torch.ones(4, device="cuda")
    for _ in range(others):
        cache.run("before", torch.neg, x)
    stream = torch.cuda.current_stream()
    with pytest.raises(CaptureError, match=r"^it cannot be captured: .+"):
        cache.run("waits", lambda x: x * x.sum().item(), x)
    assert len(cache) == others
    # PyTorch's own random numbers go on without another capture; their generator took part.
    assert 0 < torch.rand(1000, device="cuda").mean().item() < 1
    # So does work: on the caller's stream, with new memory, and with other graphs, old and new.
    assert torch.cuda.current_stream() == stream
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    for name in ("before", "negative", "negative again"):
        assert torch.equal(cache.run(name, torch.neg, 2 * x), -2 * x)
    assert torch.ones(1000, 1000, device="cuda").sum().item() == 1e6
    assert 0 < torch.rand(1000, device="cuda").mean().item() < 1


@needs_gpu
def test_failed_captures_keep_no_memory():
    """Those of a cache with another graph, whose pool they enter."""
    cache = GraphCache(2)
    x = torch.ones(2**20, device="cuda")
    cache.run("before", torch.neg, x)

    def fail():
        with pytest.raises(CaptureError):
            cache.run("waits", lambda x: (x + 1).sum().item() * x, x)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    first = fail()
    assert max(fail() for _ in range(5)) <= first + 2**21
    assert torch.equal(cache.run("before", torch.neg, x), -x)


@needs_gpu
def test_autocast_casts_again_at_every_replay():
    weight = torch.nn.Parameter(torch.ones(8, 8, device="cuda"))
    x = torch.ones(2, 8, device="cuda")
    cache = GraphCache(1)
    for value in (1.0, 2.0):
        with torch.no_grad():
            weight.fill_(value)
        with torch.autocast("cuda", torch.bfloat16):
            result = cache.run("linear", lambda x: torch.nn.functional.linear(x, weight), x)
        assert result.dtype == torch.bfloat16
        assert (result == 8 * value).all()


@needs_gpu
def test_a_lack_of_memory_on_a_gpu_passes_unchanged():
    cache = GraphCache(2)
    x = torch.ones(1, device="cuda")
    with pytest.raises(torch.OutOfMemoryError):
        cache.run("huge", lambda x: x.expand(2**46).clone(), x)
    assert len(cache) == 0
    assert cache.run("negative", torch.neg, x).item() == -1
