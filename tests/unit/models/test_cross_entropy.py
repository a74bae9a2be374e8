"""The loss of a large head, some rows at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from models import cross_entropy
from models.cross_entropy import linear_cross_entropy

ROWS, WIDTH, CODES = 37, 16, 50


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(CODES, WIDTH, generator=generator, requires_grad=True)
    return x, weight, torch.randint(CODES, (ROWS,), generator=generator)


def plain(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(x, weight).float(), targets)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("rows", [1, 5, 36, 1000])
def test_loss_and_gradients_are_the_plain_ones(rows: int, monkeypatch) -> None:
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_A_TIME", rows * CODES)
    seen, real = [], F.linear
    monkeypatch.setattr(F, "linear", lambda x, weight: seen.append(len(x)) or real(x, weight))
    ours, theirs = inputs(), inputs()
    loss = linear_cross_entropy(*ours)
    assert sum(seen) == ROWS and max(seen) == min(rows, ROWS)  # no more logits at a time
    expected = plain(*theirs)
    (3 * loss).backward()
    (3 * expected).backward()
    assert loss.dtype == torch.float32 and abs(loss - expected) < 1e-5
    for found, wanted in zip(ours[:2], theirs[:2], strict=True):
        assert distance(found.grad, wanted.grad) < 1e-5


def test_autocast_is_honoured(monkeypatch) -> None:
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_A_TIME", 10 * CODES)
    exact, ours, theirs, third = inputs(), inputs(), inputs(), inputs()
    plain(*exact).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # A third, which bfloat16 rounds, as when gradients of three batches are accumulated.
        losses = linear_cross_entropy(*ours), plain(*theirs), linear_cross_entropy(*third) / 3
    for loss in losses:
        loss.backward()
    assert abs(losses[0] - losses[1]) < 1e-3
    for i in range(2):
        assert ours[i].grad.dtype == torch.float32
        error = distance(ours[i].grad, exact[i].grad)
        assert 0 < error < 1.2 * distance(theirs[i].grad, exact[i].grad) + 1e-4
        torch.testing.assert_close(3 * third[i].grad, ours[i].grad, rtol=1e-5, atol=0)


def test_no_gradient_is_computed_that_nobody_wants() -> None:
    x, weight, targets = inputs()
    fixed = x.detach(), weight.detach()
    expected = plain(*fixed, targets)
    for given, grad, products in (
        (fixed, True, 1),
        ((x, weight), False, 1),
        ((x, fixed[1]), True, 2),
        ((fixed[0], weight), True, 2),
        ((x, weight), True, 3),
    ):
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            loss = linear_cross_entropy(*given, targets)
        assert abs(loss - expected) < 1e-5
        assert counter.get_total_flops() == products * 2 * ROWS * WIDTH * CODES
        x.grad = weight.grad = None
        if loss.requires_grad:
            loss.backward()
        wanted = [grad and each.requires_grad for each in given]
        assert [each.grad is not None for each in (x, weight)] == wanted
