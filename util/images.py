"""Pixels out: value ranges, PNGs and sheets of images."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from util.files import replacing

# The text in a PNG that says which settings made it.
MADE_BY = "Made-By"


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Scale pixels (uint8) to network range, float32 in [-1, 1], of the same shape."""
    return images.float() / 255 * 2 - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Scale (B, 3, S, S) in [-1, 1] to pixels (B, S, S, 3) uint8, rounded, clipped, contiguous."""
    pixels = ((images.float() + 1) / 2 * 255).clamp(0, 255).round()
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def save_png(image: np.ndarray, path: str | Path, made_by: str | None = None) -> None:
    """Write one image, (S, S, 3) uint8, as a PNG file; `made_by` goes into it as `MADE_BY`."""
    text = PngInfo()
    if made_by is not None:
        text.add_text(MADE_BY, made_by)
    with replacing(path, durable=False) as temporary:
        Image.fromarray(image).save(temporary, format="PNG", pnginfo=text)


def image_grid(images: np.ndarray | torch.Tensor, columns: int) -> np.ndarray:
    """Join images, (n, S, S, 3) uint8, row by row into one, with white gaps of 2 pixels."""
    pixels, gap = images.cpu().numpy() if isinstance(images, torch.Tensor) else images, 2
    count, height, width, _ = pixels.shape
    sheet = np.full((-(-count // columns), height + gap, columns, width + gap, 3), 255, np.uint8)
    for place, image in enumerate(pixels):
        sheet[place // columns, :height, place % columns, :width] = image
    return sheet.reshape(-1, columns * (width + gap), 3)[:-gap, :-gap]


def save_grid(images: np.ndarray | torch.Tensor, path: str | Path, columns: int) -> None:
    """Write `image_grid` of images as a PNG file."""
    save_png(image_grid(images, columns), path)
