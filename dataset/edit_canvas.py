"""From a picture of any size to the square that is edited, and back: fit, masks, seams."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt

from dataset.pictures import open_rgb

SIDES = ("left", "right", "top", "bottom")
_MAX_PIXELS = 2**26  # of a resized picture: one some pixels wide and very long is refused


@dataclass(frozen=True, eq=False)
class Canvas:
    """A square picture and what of it is to be generated."""

    pixels: np.ndarray  # (S, S, 3) uint8; beside a padded picture its mirror image
    mask: np.ndarray  # (S, S) bool, True where to generate; never beside the picture
    rows: slice  # where the picture lies, all of the square unless it is padded
    columns: slice

    def token_mask(self, stride: int) -> np.ndarray:
        """Mark the cells with a masked pixel, if any also those beside the picture: (N,) bool."""
        if not self.mask.any():
            return np.zeros((len(self.mask) // stride) ** 2, dtype=bool)
        picture = np.zeros_like(self.mask)
        picture[self.rows, self.columns] = True
        blocks = np.stack([self.mask, picture]).reshape(2, *[len(picture) // stride, stride] * 2)
        masked, shown = blocks.any(axis=(2, 4)).reshape(2, -1)
        return masked | ~shown  # a mirror image is no context

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


def open_mask(path: str | Path, image: Image.Image) -> np.ndarray:
    """Decode a mask (H, W) bool, True where half white; ValueError if not shaped as `image`."""
    picture = open_rgb(path, behind_alpha="black", upright=True)  # transparent is not white
    # The smaller of the two is the larger one scaled, with sides rounded to whole pixels.
    across = abs(picture.width * image.height - picture.height * image.width)
    if across >= max(*picture.size, *image.size):
        raise ValueError(
            f"found a mask of {picture.width} x {picture.height} pixels for an image of "
            f"{image.width} x {image.height}, expected its size or proportions"
        )
    return np.asarray(picture.convert("L")) >= 128


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


def fit(
    image: Image.Image, mask: np.ndarray, size: int, how: str = "crop", towards: str | None = None
) -> Canvas:
    """Make a square of `size` pixels a side of an RGB image and its mask, of any size (H, W) bool.

    `crop` cuts the middle out, exactly as for training data (method section 8), or at the side
    `towards`, one of `SIDES`; `pad` shows all of it, in the middle. A `ValueError` if it is far too
    long. Masked is a pixel in which any masked pixel lies.
    """
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
    parts, padding = [], []
    for length, share in (
        (height, {"top": 0.0, "bottom": 1.0}.get(towards, 0.5)),
        (width, {"left": 0.0, "right": 1.0}.get(towards, 0.5)),
    ):
        surplus = length - size
        # What is cut off in front; negative for padding, which is always in the middle.
        offset = int(surplus * share) if surplus > 0 else surplus // 2
        start, stop = max(offset, 0), min(offset + size, length)
        parts.append(slice(start, stop))
        padding.append((start - offset, offset + size - stop))
        at, masked = np.arange(start, stop), len(mask)
        edges = np.stack([at * masked // length, -(-(at + 1) * masked // length)], axis=1)
        # Every second: what lies from an edge to the next. Then the columns of what is left.
        mask = np.logical_or.reduceat(np.pad(mask, ((0, 1), (0, 0))), edges.ravel())[::2].T
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))[tuple(parts)]
    rows, columns = (slice(before, size - after) for before, after in padding)
    pixels = np.pad(pixels, (*padding, (0, 0)), mode="symmetric")
    return Canvas(pixels, np.pad(mask, padding), rows, columns)
