"""Cross-entropy of a linear head without all its logits in memory at once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits at a time: 2**24 are 64 MiB in float32, and enough rows to fill a GPU.
LOGITS_AT_A_TIME = 2**24


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`F.cross_entropy(F.linear(x, weight).float(), targets)`, some rows at a time.

    (R, C), (V, C) and (R,) int64 -> scalar float32, the mean over rows. Gradients are computed
    along with the loss, where the logits are at hand: no logit is kept or computed twice. Products
    run in the dtype of an enclosing `torch.autocast`, sums in float32.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if not torch.is_grad_enabled():  # the function cannot see it: it runs without gradients
        x, weight = x.detach(), weight.detach()
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(x, weight, targets, dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        rows = max(1, LOGITS_AT_A_TIME // len(weight))
        wants_x, wants_weight, *_ = ctx.needs_input_grad
        # Gradients of the sum, in the inputs' own dtypes: what is cast here is not cast back.
        grad_x = torch.empty_like(x) if wants_x else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        weight, weight_dtype = weight.to(dtype), weight.dtype
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        for start in range(0, len(x), rows):
            part, wanted = x[start : start + rows].to(dtype), targets[start : start + rows, None]
            logs = F.linear(part, weight).log_softmax(dim=-1, dtype=torch.float32)
            total -= logs.gather(1, wanted).sum()
            if wants_x or wants_weight:
                minus_ones = logs.new_full((1, 1), -1).expand_as(wanted)
                slope = logs.exp_().scatter_add_(1, wanted, minus_ones).to(dtype)
                if wants_x:
                    grad_x[start : start + rows] = slope @ weight
                if wants_weight:
                    grad_weight += slope.mT @ part
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.num_rows, ctx.weight_dtype = len(x), weight_dtype
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        scale = grad / ctx.num_rows
        if grad_x is not None:
            grad_x = grad_x * scale.to(grad_x.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * scale).to(ctx.weight_dtype)
        return grad_x, grad_weight, None, None
