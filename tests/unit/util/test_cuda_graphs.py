"""Which graphs are kept and what goes in and out; the capture itself is tested on a GPU."""

from contextlib import contextmanager

import pytest
import torch

from util import cuda_graphs
from util.cuda_graphs import CaptureError, GraphCache, _Captured, _record


class CpuGraph:
    """Stands for a captured graph: computes from and into the same tensors at every replay."""

    def __init__(self, function, inputs):
        self.function, self.inputs = function, inputs
        self.output = function(*inputs)

    def replay(self):
        self.output.copy_(self.function(*self.inputs))


@pytest.fixture
def captures(monkeypatch):
    """The functions captured so far."""
    functions = []

    def capture(cache, function, inputs):
        functions.append(function)
        graph = CpuGraph(function, tuple(x.clone() for x in inputs))
        return _Captured(graph, graph.inputs, graph.output)

    monkeypatch.setattr(GraphCache, "_capture", capture)
    return functions


def test_a_key_is_captured_once_and_replayed_with_new_inputs(captures):
    cache = GraphCache(2)
    first = cache.run("sum", torch.add, torch.tensor([1.0]), torch.tensor([2.0]))
    second = cache.run("sum", torch.add, torch.tensor([10.0]), torch.tensor([20.0]))
    assert captures == [torch.add]
    assert first.item() == 3  # not overwritten by the second replay
    assert second.item() == 30


def test_other_shapes_and_dtypes_are_other_graphs(captures):
    cache = GraphCache(4)
    for inputs in (torch.zeros(1), torch.zeros(3), torch.zeros(3, dtype=torch.int64)):
        result = cache.run("negative", torch.neg, inputs)
        assert result.shape == inputs.shape
        assert result.dtype == inputs.dtype
    assert len(captures) == len(cache) == 3


def test_other_settings_of_pytorch_are_other_graphs(captures):
    cache = GraphCache(9)
    x = torch.zeros(1)
    cache.run("negative", torch.neg, x)
    with torch.backends.cudnn.flags(deterministic=True):
        cache.run("negative", torch.neg, x)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if before == "highest" else "highest")
    try:
        cache.run("negative", torch.neg, x)
    finally:
        torch.set_float32_matmul_precision(before)
    cache.run("negative", torch.neg, x)
    assert len(captures) == len(cache) == 3


def test_the_least_recently_used_graph_is_dropped(captures):
    cache = GraphCache(2)
    for key in ("a", "b", "a", "c", "a"):  # c pushes out b
        cache.run(key, torch.neg, torch.zeros(1))
    assert len(cache) == 2
    assert len(captures) == 3
    cache.run("b", torch.neg, torch.zeros(1))
    assert len(captures) == 4
    cache.clear()
    assert len(cache) == 0


def test_a_graph_is_dropped_before_another_is_captured(captures, monkeypatch):
    held = []
    capture = GraphCache._capture
    monkeypatch.setattr(
        GraphCache,
        "_capture",
        lambda cache, *args: held.append(len(cache)) or capture(cache, *args),
    )
    cache = GraphCache(1)
    for key in "ab":
        cache.run(key, torch.neg, torch.zeros(1))
    assert held == [0, 0]


def test_a_failed_capture_leaves_nothing(monkeypatch):
    def capture(cache, function, inputs):
        raise CaptureError("it waits")

    monkeypatch.setattr(GraphCache, "_capture", capture)
    cache = GraphCache(2)
    with pytest.raises(CaptureError, match="it waits"):
        cache.run("a", torch.neg, torch.zeros(1))
    assert len(cache) == 0


def test_at_least_one_graph():
    with pytest.raises(ValueError, match="max_graphs: found 0"):
        GraphCache(0)


class Recorder:
    """Stands for `torch.cuda.CUDAGraph` and, in `recording`, for `torch.cuda.graph`."""

    def __init__(self):
        self.was_reset = False

    def reset(self):
        self.was_reset = True


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    monkeypatch.setattr(cuda_graphs.torch.cuda, "CUDAGraph", lambda: made)

    @contextmanager
    def recording(graph, **options):
        try:
            yield
        except RuntimeError as error:
            if "invalid" in str(error):  # then the end of the capture fails too, as CUDA's does
                raise RuntimeError("capture was invalidated") from None
            raise

    monkeypatch.setattr(cuda_graphs.torch.cuda, "graph", recording)
    return made


@pytest.mark.parametrize("message", ["not permitted\nmore lines", "invalid wait"])
def test_what_cannot_be_captured_is_one_line(recorder, message):
    def function():
        raise RuntimeError(message)

    with pytest.raises(CaptureError) as caught:
        _record(function, (), (0, 1), None)
    first = message.splitlines()[0]
    assert str(caught.value) == f"it cannot be captured: {first}"
    assert recorder.was_reset


def test_a_lack_of_memory_shows_through_the_failed_end_of_a_capture(recorder):
    def function():
        raise torch.OutOfMemoryError("invalid: full")

    with pytest.raises(torch.OutOfMemoryError, match="full"):
        _record(function, (), (0, 1), None)
    assert recorder.was_reset


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), ValueError("bad")])
def test_other_errors_pass_unchanged(recorder, error):
    def function():
        raise error

    with pytest.raises(type(error)) as caught:
        _record(function, (), (0, 1), None)
    assert caught.value is error
    assert recorder.was_reset
