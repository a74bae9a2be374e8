"""Faster ways to compute on a CPU what PyTorch computes as well."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """As `nn.Dropout`, with a probability rounded to 16 bits on a CPU.

    PyTorch's own generator there takes as long for a small model's dropout as all of its matrix
    products; this one turns every random word into four decisions.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * 2**16)
        draws_words = self.training and x.device.type == "cpu" and 0 < dropped < 2**16
        if not draws_words or torch.compiler.is_compiling():
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        draws = words.view(torch.int16)[: x.numel()].view(x.shape)
        scale = x.new_tensor(2**16 / (2**16 - dropped))
        return x * torch.where(draws >= dropped - 2**15, scale, scale.new_zeros(()))


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """As `F.scaled_dot_product_attention`, through float32 where a CPU trains in bfloat16.

    There the backward pass of bfloat16 attention takes twice as long as float32's.
    """
    if not (q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu"):
        return F.scaled_dot_product_attention(q, k, v, mask, dropout)
    with torch.autocast("cpu", enabled=False):
        x = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, dropout)
    return x.to(q.dtype)
