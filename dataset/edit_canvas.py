"""From a picture of any size to the square that is edited, and back: fit, masks, seams."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt

from dataset.pictures import open_rgb

FITS = ("crop", "pad")
SIDES = ("left", "right", "top", "bottom")
_MAX_PIXELS = 2**26  # of a resized picture: one some pixels wide and very long is refused
_WHITE = 128


@dataclass(frozen=True, eq=False)
class Canvas:
    """A square picture and what of it is to be generated."""

    pixels: np.ndarray  # (S, S, 3) uint8; beside a padded picture its mirror image
    mask: np.ndarray  # (S, S) bool, True where to generate; never beside the picture
    rows: slice  # where the picture lies, all of the square unless it is padded
    columns: slice

    def token_mask(self, stride: int) -> np.ndarray:
        """Mark the cells with a masked pixel, if any also those beside the picture: (N,) bool."""
        picture = np.zeros_like(self.mask)
        picture[self.rows, self.columns] = True
        masked, shown = (_cells_with(pixels, stride) for pixels in (self.mask, picture))
        return masked | ~shown if masked.any() else masked  # a mirror image is no context

    def picture(self, images: np.ndarray) -> np.ndarray:
        """Cut the padding off: (..., S, S, C) -> (..., height, width, C)."""
        return images[..., self.rows, self.columns, :]

    def composite(self, images: np.ndarray, feather: int) -> np.ndarray:
        """Blend `images` (B, S, S, 3) uint8 with weight max(0, 1 - distance / (feather + 1))."""
        if not self.mask.any():  # which has no distance to anything
            return np.broadcast_to(self.pixels, images.shape).copy()
        distance = distance_transform_edt(~self.mask)
        share = np.clip(1 - distance / (feather + 1), 0, 1)[..., None]
        return np.rint(share * images + (1 - share) * self.pixels).astype(np.uint8)


def _cells_with(pixels: np.ndarray, stride: int) -> np.ndarray:
    count = len(pixels) // stride
    return pixels.reshape(count, stride, count, stride).any(axis=(1, 3)).ravel()


def open_picture(path: str | Path) -> Image.Image:
    """Decode a picture to RGB, turned as its orientation tag says; raises `UserError`."""
    return open_rgb(path, upright=True)


def open_mask(path: str | Path) -> np.ndarray:
    """Decode a mask: (H, W) bool, True where a picture is half white; transparent is black."""
    picture = open_rgb(path, behind_alpha="black", upright=True)
    return np.asarray(picture.convert("L")) >= _WHITE


def box_mask(image: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    """Make a mask (H, W), True in x0 <= x < x1, y0 <= y < y1; `ValueError` outside the image."""
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= image.width and 0 <= y0 < y1 <= image.height):
        raise ValueError(
            f"found {x0} {y0} {x1} {y1}, expected x0 < x1 and y0 < y1 inside the image of "
            f"{image.width} x {image.height} pixels"
        )
    mask = np.zeros((image.height, image.width), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def outpaint(image: Image.Image, side: str, count: int) -> tuple[Image.Image, np.ndarray]:
    """Add `count` mirrored pixels at one of `SIDES`; also return a mask (H, W) of what is new."""
    width, height = image.size
    if not 1 <= count <= max(width, height):
        raise ValueError(
            f"found {count} pixels, expected 1 to {max(width, height)}, the image's longer side"
        )
    vertical = side in ("top", "bottom")
    if width * height + count * (width if vertical else height) > _MAX_PIXELS:
        raise ValueError(f"found {count} pixels, expected fewer: the image becomes too large")
    added = (count, 0) if side in ("left", "top") else (0, count)
    added = (added, (0, 0)) if vertical else ((0, 0), added)
    pixels = np.pad(np.asarray(image), (*added, (0, 0)), mode="symmetric")
    mask = np.pad(np.zeros((height, width), dtype=bool), added, constant_values=True)
    return Image.fromarray(pixels), mask


def check_proportions(image: Image.Image, mask: np.ndarray) -> None:
    """Raise `ValueError` unless a mask (H, W) has an image's size, or its proportions."""
    height, width = mask.shape
    # The smaller of the two is the larger one scaled, with sides rounded to whole pixels.
    across = abs(width * image.height - height * image.width)
    if across >= max(width, height, *image.size):
        raise ValueError(
            f"found a mask of {width} x {height} pixels for an image of {image.width} x "
            f"{image.height}, expected its size or proportions"
        )


def fit(
    image: Image.Image,
    mask: np.ndarray,
    size: int,
    how: str = "crop",
    towards: str | None = None,
) -> Canvas:
    """Make a square of `size` pixels a side of an RGB image and its mask, (H, W) bool.

    `crop` cuts the middle out, exactly as for training data (method section 8), or at the side
    `towards`, one of `SIDES`; `pad` shows all of it, in the middle. Raises a `ValueError` if the
    mask has other proportions than the image, or that is far too long.
    """
    check_proportions(image, mask)
    extent = min if how == "crop" else max
    source = given = image.size
    # As ADM does: halve while large, then resize.
    while extent(source) >= 2 * size:
        source = max(1, source[0] // 2), max(1, source[1] // 2)
        image = image.resize(source, Image.Resampling.BOX)
    width, height = (max(1, round(side * size / extent(source))) for side in source)
    if width * height > _MAX_PIXELS:
        raise ValueError(
            f"found an image of {given[0]} x {given[1]} pixels, expected a less elongated one"
        )
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left = _offset(width - size, {"left": 0.0, "right": 1.0}.get(towards, 0.5))
    top = _offset(height - size, {"top": 0.0, "bottom": 1.0}.get(towards, 0.5))
    rows, row_padding = _window(height, top, size)
    columns, column_padding = _window(width, left, size)
    pixels = np.asarray(image)[rows, columns]
    shown = _any_white(mask, (height, width), rows, columns)
    padding = (row_padding, column_padding)
    return Canvas(
        pixels=np.pad(pixels, (*padding, (0, 0)), mode="symmetric"),
        mask=np.pad(shown, padding),
        rows=slice(row_padding[0], size - row_padding[1]),
        columns=slice(column_padding[0], size - column_padding[1]),
    )


def _offset(surplus: int, share: float) -> int:
    """What is cut off in front; negative for padding, which is always in the middle."""
    return int(surplus * share) if surplus > 0 else surplus // 2


def _window(length: int, offset: int, size: int) -> tuple[slice, tuple[int, int]]:
    """Return what is shown of a side `length` in a square, and the padding around it."""
    start, stop = max(offset, 0), min(offset + size, length)
    return slice(start, stop), (start - offset, offset + size - stop)


def _any_white(
    mask: np.ndarray, resized: tuple[int, int], rows: slice, columns: slice
) -> np.ndarray:
    """Resize a mask and cut `rows`, `columns` out: True where any pixel that lies there is."""
    # Summed-area table: four entries give the number of True in a rectangle.
    counts = mask.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    counts = np.pad(counts, ((1, 0), (1, 0)))
    edges = []
    for length, new, part in zip(mask.shape, resized, (rows, columns), strict=True):
        at = np.arange(part.start, part.stop)
        edges.append((at * length // new, -(-(at + 1) * length // new)))
    (top, bottom), (left, right) = edges
    inside = counts[np.ix_(bottom, right)] - counts[np.ix_(top, right)]
    inside -= counts[np.ix_(bottom, left)] - counts[np.ix_(top, left)]
    return inside > 0
