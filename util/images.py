"""Pixels out: value ranges, PNGs and sheets of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from util.files import replacing

Pixels = np.ndarray | torch.Tensor

# The text in a PNG that says which settings made it.
MADE_BY = "Made-By"


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Pixels (uint8) to network range, float32 in [-1, 1], of the same shape."""
    return images.float() / 255 * 2 - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Network range to pixels, rounded and clipped (method section 7).

    (B, 3, S, S) floating point, nominally in [-1, 1], becomes (B, S, S, 3) uint8, contiguous.
    """
    pixels = ((images.float() + 1) / 2 * 255).clamp(0, 255).round()
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def save_png(image: Pixels, path: str | Path, made_by: str | None = None) -> None:
    """Write one image, (S, S, 3) uint8, as a PNG file; `made_by` goes into it as `MADE_BY`."""
    text = PngInfo()
    if made_by is not None:
        text.add_text(MADE_BY, made_by)
    with replacing(path, durable=False) as temporary:
        Image.fromarray(as_pixels(image, 3)).save(temporary, format="PNG", pnginfo=text)


def image_grid(images: Pixels, columns: int, gap: int = 2) -> np.ndarray:
    """Join images, (n, S, S, 3) uint8, row by row into one, with white gaps of `gap` pixels."""
    pixels = as_pixels(images, 4)
    if len(pixels) == 0 or columns < 1:
        raise ValueError(f"found {len(pixels)} images in {columns} columns, expected at least 1")
    rows = -(-len(pixels) // columns)
    padding = ((0, rows * columns - len(pixels)), (0, gap), (0, gap), (0, 0))
    tiles = np.pad(pixels, padding, constant_values=255)
    _, height, width, _ = tiles.shape
    tiles = tiles.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    grid = tiles.reshape(rows * height, columns * width, 3)
    return grid[: grid.shape[0] - gap, : grid.shape[1] - gap]


def save_grid(images: Pixels, path: str | Path, columns: int, gap: int = 2) -> None:
    """Write `image_grid` of images as a PNG file."""
    save_png(image_grid(images, columns, gap), path)


def as_pixels(images: Pixels, dimensions: int) -> np.ndarray:
    """Return `images` as a C-contiguous uint8 array of (..., 3), or raise a `ValueError`."""
    pixels = images.cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    if pixels.dtype != np.uint8 or pixels.ndim != dimensions or pixels.shape[-1] != 3:
        expected = "(S, S, 3)" if dimensions == 3 else "(n, S, S, 3)"
        raise ValueError(f"found {pixels.dtype} {pixels.shape}, expected uint8 {expected}")
    return np.ascontiguousarray(pixels)
