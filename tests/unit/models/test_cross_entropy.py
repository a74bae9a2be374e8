"""The loss of a large head, some rows at a time."""

import pytest
import torch
import torch.nn.functional as F

from models import cross_entropy
from models.cross_entropy import linear_cross_entropy

ROWS, WIDTH, CODES = 37, 16, 50


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(CODES, WIDTH, generator=generator).to(dtype).requires_grad_()
    return x, weight, torch.randint(CODES, (ROWS,), generator=generator)


def plain(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(x, weight).float(), targets)


@pytest.mark.parametrize("rows", [1, 5, 36, 37, 1000])
def test_loss_and_gradients_are_the_plain_ones(rows: int, monkeypatch) -> None:
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_A_TIME", rows * CODES)
    ours, theirs = inputs(), inputs()
    loss, expected = linear_cross_entropy(*ours), plain(*theirs)
    (3 * loss).backward()
    (3 * expected).backward()
    assert loss.dtype == torch.float32
    assert abs(loss - expected) < 1e-5
    for found, wanted in zip(ours[:2], theirs[:2], strict=True):
        assert (found.grad - wanted.grad).norm() < 1e-5 * wanted.grad.norm()


def test_autocast_is_honoured(monkeypatch) -> None:
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_A_TIME", 10 * CODES)
    exact, ours, theirs = inputs(), inputs(), inputs()
    plain(*exact).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(*ours)
        expected = plain(*theirs)
    loss.backward()
    expected.backward()
    assert abs(loss - expected) < 1e-3
    for found, autocast, right in zip(ours[:2], theirs[:2], exact[:2], strict=True):
        assert found.grad.dtype == torch.float32
        error = (found.grad - right.grad).norm()
        assert 0 < error < 1.2 * (autocast.grad - right.grad).norm() + 1e-4


def test_a_scaled_loss_scales_the_gradients_without_a_bias() -> None:
    """A third, which bfloat16 rounds, as when gradients of three batches are accumulated."""
    whole, third = inputs(), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = linear_cross_entropy(*whole), linear_cross_entropy(*third) / 3
    for loss in losses:
        loss.backward()
    for found, expected in zip(third[:2], whole[:2], strict=True):
        torch.testing.assert_close(3 * found.grad, expected.grad, rtol=1e-5, atol=0)


def test_no_gradient_is_computed_that_nobody_wants() -> None:
    x, weight, targets = inputs()
    assert linear_cross_entropy(x.detach(), weight.detach(), targets).grad_fn is None
    with torch.no_grad():
        assert abs(linear_cross_entropy(x, weight, targets) - plain(x, weight, targets)) < 1e-5
    linear_cross_entropy(x, weight.detach(), targets).backward()
    assert x.grad is not None and weight.grad is None


def test_memory_is_that_of_some_rows(monkeypatch) -> None:
    seen = []
    real = F.linear

    def spy(x, weight):
        seen.append(len(x))
        return real(x, weight)

    monkeypatch.setattr(cross_entropy, "LOGITS_AT_A_TIME", 8 * CODES)
    monkeypatch.setattr(F, "linear", spy)
    linear_cross_entropy(*inputs())
    assert seen == [8, 8, 8, 8, 5]
