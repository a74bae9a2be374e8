"""Cross-entropy of a linear head without all its logits in memory at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

# Logits at a time: 2**24 are 64 MiB in float32, and enough rows to fill a GPU.
LOGITS_AT_A_TIME = 2**24


def linear_cross_entropy(
    x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """`F.cross_entropy(F.linear(x, weight).float(), targets)`, some rows at a time.

    Gradients are computed along with the loss, where the logits are at hand: no logit is kept or
    computed twice. Products run in the dtype of an enclosing `torch.autocast`, sums in float32.

    Args:
        x: (R, C).
        weight: (V, C).
        targets: (R,) int64 in [0, V).

    Returns:
        Scalar float32, the mean over rows.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(x, weight, targets)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        rows = max(1, LOGITS_AT_A_TIME // len(weight))
        wants_x, wants_weight, _ = ctx.needs_input_grad
        grad_x = torch.empty_like(x) if wants_x else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        for start in range(0, len(x), rows):
            part, wanted = x[start : start + rows], targets[start : start + rows, None]
            logits = F.linear(part, weight).float()
            scale = logits.logsumexp(dim=-1, keepdim=True)
            total += (scale - logits.gather(1, wanted)).sum()
            if not (wants_x or wants_weight):
                continue
            probs = logits.sub_(scale).exp_()
            probs.scatter_add_(1, wanted, probs.new_full((1, 1), -1).expand_as(wanted))
            slope = probs.div_(len(x)).to(x.dtype)
            if wants_x:
                grad_x[start : start + rows] = slope @ weight
            if wants_weight:
                grad_weight += slope.mT @ part
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        if grad_x is not None:
            grad_x = grad_x * grad.to(grad_x.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad).to(ctx.weight_dtype)
        return grad_x, grad_weight, None
