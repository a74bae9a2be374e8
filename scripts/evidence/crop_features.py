"""Crops of photographs in numbers: what their judge looks at, and what a distance compares.

Both see a crop averaged over 4 x 4 pixels, the tokens of the study: what lies inside a token is the
tokenizer's doing, what lies between them the sampler's. Both are fixed, nothing here is trained.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

TOKEN = 4
# Tokens along a side of a cell of which the judge sees the lines together.
CELL = 4
DIRECTIONS = 8
# Lightness, red against green, blue against yellow.
OPPONENT = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1 / 2, -1 / 2, 0], [-1 / 4, -1 / 4, 1 / 2]])
SCALES = 2
# One grey level: a plane without any contrast keeps a logarithm.
FLOOR = 1 / 255


def judge_features(images: Tensor) -> Tensor:
    """Which colours and lines are where in a crop.

    For every cell of 16 x 16 pixels its mean colour, and the square root of the mean gradient of
    lightness in each of eight directions.

    Args:
        images: (n, 3, S, S) uint8, S a multiple of 16.

    Returns:
        (n, 11 * (S / 16) ** 2) float32.
    """
    colours = _by_token(images)
    light = functional.pad(colours.mean(dim=1), (0, 1, 0, 1), mode="replicate")
    down = light[:, 1:, :-1] - light[:, :-1, :-1]
    right = light[:, :-1, 1:] - light[:, :-1, :-1]
    turn = torch.atan2(down, right) / (2 * torch.pi)
    direction = (turn * DIRECTIONS).round().long() % DIRECTIONS
    votes = functional.one_hot(direction, DIRECTIONS).movedim(-1, 1) * down.hypot(right)[:, None]
    lines = functional.avg_pool2d(votes, CELL).sqrt()
    return torch.cat([lines, functional.avg_pool2d(colours, CELL)], dim=1).flatten(1)


def texture_features(images: Tensor) -> Tensor:
    """A crop's colours, and how strongly they change from token to token.

    Of lightness and two colour contrasts: the means of the four quarters; then, by token and by
    2 x 2 tokens, the logarithms of the mean and of the root mean square difference of neighbours,
    side by side, one below the other and along both diagonals.

    Args:
        images: (n, 3, S, S) uint8, S a multiple of 16.

    Returns:
        (n, 60) float32.
    """
    planes = torch.einsum("pc,nchw->nphw", OPPONENT, _by_token(images))
    parts = [functional.avg_pool2d(planes, planes.shape[-1] // 2).flatten(1)]
    for _ in range(SCALES):
        for difference in _differences(planes):
            parts.append((difference.abs().mean(dim=(2, 3)) + FLOOR).log())
            parts.append((difference.square().mean(dim=(2, 3)) + FLOOR**2).log() / 2)
        planes = functional.avg_pool2d(planes, 2)
    return torch.cat(parts, dim=1)


def _by_token(images: Tensor) -> Tensor:
    """Mean colours (n, 3, S / 4, S / 4) in [0, 1]."""
    return functional.avg_pool2d(images.float(), TOKEN) / 255


def _differences(planes: Tensor) -> Iterator[Tensor]:
    """Of neighbours in four directions, each (n, 3, side - 1, side - 1)."""
    here = planes[..., :-1, :-1]
    yield planes[..., :-1, 1:] - here
    yield planes[..., 1:, :-1] - here
    yield planes[..., 1:, 1:] - here
    yield planes[..., 1:, :-1] - planes[..., :-1, 1:]
