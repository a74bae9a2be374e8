"""Pixels -> code indices, at a precision that is chosen, never fallen into."""

import logging

import torch
from torch import Tensor

from tokenizers.vq_model import VQModel
from util.device import plain_float32
from util.images import to_float

logger = logging.getLogger(__name__)

PRECISIONS = ("float32", "tf32", "bf16")


@torch.no_grad()  # training keeps the indices for its backward pass: no inference mode
def encode(tokenizer: VQModel, images: Tensor, precision: str = "float32") -> Tensor:
    """Tokenize images (B, 3, S, S) uint8: (B, N) int64, raster order, on the tokenizer's device.

    The precision, one of `PRECISIONS`, holds whatever autocast and `torch.backends` say (PyTorch by
    itself would use TF32 on a GPU). The nearest code is looked up in float64 either way.
    """
    device = next(tokenizer.parameters()).device
    pixels = to_float(images.to(device, non_blocking=True))
    with (
        plain_float32(device, tf32=precision == "tf32"),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        return tokenizer.encode_indices(pixels.contiguous(memory_format=torch.channels_last))


def encode_both_ways(tokenizer: VQModel, images: Tensor, precision: str = "float32") -> Tensor:
    """Tokenize images (B, 3, S, S) uint8 plain and mirrored left to right: (B, 2, N)."""
    if len(images) == 0:
        side = images.shape[-1] // tokenizer.stride
        return torch.empty((0, 2, side**2), dtype=torch.int64)
    indices = encode(tokenizer, torch.cat([images, images.flip(-1)]), precision)
    return torch.stack(indices.chunk(2), dim=1)


def log_share_changed(tokenizer: VQModel, images: Tensor, precision: str) -> None:
    """Log what share of the indices of `images` a precision below float32 changes."""
    if precision == "float32" or len(images) == 0:
        return
    rounded, exact = (encode_both_ways(tokenizer, images, name) for name in (precision, "float32"))
    share = (rounded != exact).double().mean().item()
    logger.info("%s changes %.4f %% of the first batch's indices", precision, 100 * share)
