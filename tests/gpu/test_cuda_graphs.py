"""Capturing: replays see new inputs, and what cannot be captured says why."""

import pytest
import torch

from models.cuda_graphs import CaptureError, GraphCache

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_replays_follow_their_inputs():
    cache = GraphCache(2)
    for value in (1.0, 2.0, 3.0):
        x = torch.full((1000,), value, device="cuda")
        result = cache.run("polynomial", lambda x, y: (x * x + y).relu(), x, -x)
        torch.testing.assert_close(result, x * x - x)
    assert len(cache) == 1


def test_results_survive_other_replays_and_dropped_graphs():
    cache = GraphCache(2)
    inputs = [torch.randn(n, 64, device="cuda") for n in (1, 2, 3, 1, 3, 2)]
    results = [cache.run("product", lambda x: (x @ x.mT).softmax(-1), x) for x in inputs]
    for x, result in zip(inputs, results, strict=True):
        torch.testing.assert_close(result, (x @ x.mT).softmax(-1))


def test_one_graph_at_a_time():
    """The pool ends with its only graph; the next begins another."""
    cache = GraphCache(1)
    for n in (10, 20, 10):
        x = torch.arange(n, device="cuda")
        assert torch.equal(cache.run("double", lambda x: 2 * x, x), 2 * x)
    cache.clear()
    assert torch.equal(cache.run("double", lambda x: 2 * x, x), 2 * x)


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


def test_a_lack_of_memory_passes_unchanged():
    cache = GraphCache(2)
    x = torch.ones(1, device="cuda")
    with pytest.raises(torch.OutOfMemoryError):
        cache.run("huge", lambda x: x.expand(2**46).clone(), x)
    assert len(cache) == 0
    assert cache.run("negative", torch.neg, x).item() == -1


def test_other_settings_are_other_graphs(monkeypatch):
    cache = GraphCache(2)
    x = torch.randn(64, 64, device="cuda")
    for allowed in (False, True):
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", allowed)
        assert torch.equal(cache.run("product", torch.matmul, x, x), x @ x)
    assert len(cache) == 2


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
