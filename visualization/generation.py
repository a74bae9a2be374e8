"""A generation step by step: what is decoded so far as an image, the rest greyed."""

from collections.abc import Sequence

import numpy as np
import torch

from tokenizers.vq_model import VQModel
from util.geometry import grid_side
from util.images import to_uint8

# Undecided cells: bluish, so that they are told from the greys of an image.
GREY = (172, 180, 194)


@torch.no_grad()
def images_so_far(tokenizer: VQModel, tokens: torch.Tensor) -> torch.Tensor:
    """Draw grids of codes (B, N), negative where undecided: (B, S, S, 3) uint8, grey there.

    Complete grids give `to_uint8(tokenizer.decode_code(tokens))`.
    """
    tokens = tokens.to(tokenizer.quantize.embedding.weight.device)
    undecided, side = tokens < 0, grid_side(tokens.shape[1])
    codes = tokenizer.quantize.lookup(tokens.clamp(min=0))
    # The zero vector is equally far from all codes: cells beside it look as if nothing was known.
    codes = codes.masked_fill(undecided[..., None], 0)
    features = tokenizer.post_quant_conv(codes.mT.unflatten(-1, (side, side)))
    images = to_uint8(tokenizer.decoder(features))
    cells = undecided.view(-1, side, side)
    pixels = cells.repeat_interleave(tokenizer.stride, 1).repeat_interleave(tokenizer.stride, 2)
    grey = torch.tensor(GREY, dtype=torch.uint8, device=images.device)
    return torch.where(pixels[..., None], grey, images)


def strip_steps(steps: int, most: int) -> list[int]:
    """Choose at most `most` of the steps, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, steps - 1, min(steps, most)).round().astype(int)).tolist()


def step_titles(group_sizes: Sequence[int], what: str = "tokens") -> list[str]:
    """Name the picture after each step."""
    steps, total = len(group_sizes), sum(group_sizes)
    done = enumerate(np.cumsum(group_sizes), start=1)
    return [f"step {step} of {steps}: {count} of {total} {what}" for step, count in done]
