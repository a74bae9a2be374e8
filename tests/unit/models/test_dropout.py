"""Dropout whose mask is cheap on a CPU."""

import pytest
import torch

from models.cpu import Dropout


@pytest.mark.parametrize(
    ("p", "dtype"), [(0.1, torch.float32), (0.1, torch.bfloat16), (0.9, torch.float32)]
)
def test_share_scale_and_gradient(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.full((7, 301, 101), 2.0, dtype=dtype, requires_grad=True)
    y = Dropout(p)(x)
    assert y.dtype == dtype
    kept = y != 0
    assert abs(kept.float().mean() - (1 - p)) < 4 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-16
    rel = 1e-4 if dtype == torch.float32 else 2**-8
    assert y[kept].unique().item() == pytest.approx(2 / (1 - p), rel=rel)
    y.sum().backward()
    assert torch.equal(x.grad != 0, kept)
    # neighbours share a random word: they must not share its decision
    flat = kept.flatten().float()
    for shift in (1, 2, 3, 4, 101):
        assert abs((flat[:-shift] * flat[shift:]).mean() - (1 - p) ** 2) < 0.01


def test_it_follows_the_seed_and_the_mode() -> None:
    x, dropout = torch.ones(1000), Dropout(0.3)
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)
    assert dropout.eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(1000))
    assert Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)
