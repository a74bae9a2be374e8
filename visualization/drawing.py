"""Pictures of rows and columns of images with words around them; PNG and GIF files."""

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from util.files import replacing

logger = logging.getLogger("lpd")

INK = (34, 34, 34)
# Distinct to all kinds of colour vision (Okabe and Ito): blue, vermilion, green, purple, ...
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINE, _GAP = 22, 6  # height of a line of letters, and what is between images; pixels


@dataclass(frozen=True)
class Sheet:
    """Square images in rows and columns, and the words around them."""

    columns: int  # images in a row
    row_names: Sequence[str] = ()
    column_names: Sequence[str] = ()
    captions: Sequence[str] = ()  # below each image
    titles: Sequence[str] = ()  # above all, one for each picture that is drawn
    side: int = 128  # of an image, see `resized`

    def draw(self, images: Sequence[np.ndarray], number: int = 0) -> Image.Image:
        """Draw images (n, S, S, 3) uint8, row by row, under title `number`; RGB."""
        images = [resized(image, self.side) for image in images]
        side = len(images[0])
        bottom = self.corner(len(images) - 1, side)[1] + side + _LINE * bool(self.captions)
        sheet = Image.new("RGB", (self._width_and_left(side)[0], bottom + _GAP), "white")
        write = functools.partial(ImageDraw.Draw(sheet).text, fill=INK, font=get_font())
        if self.titles:
            write((_GAP, _GAP), self.titles[number])
        for index, image in enumerate(images):
            left, top = self.corner(index, side)
            middle = left + side // 2
            sheet.paste(Image.fromarray(image), (left, top))
            if self.captions:
                write((middle, top + side + 3), fitted(self.captions[index], side), anchor="ma")
            if self.column_names and index < self.columns:
                above = top - _LINE + 3
                write((middle, above), fitted(self.column_names[index], side), anchor="ma")
            if self.row_names and index % self.columns == 0:
                name = self.row_names[index // self.columns]
                write((left - _GAP, top + side // 2), name, anchor="rm")
        return sheet

    def corner(self, index: int, side: int) -> tuple[int, int]:
        """Return the left and top edge of an image whose side on the sheet is `side` pixels."""
        row, column = divmod(index, self.columns)
        top = _GAP + _LINE * (bool(self.titles) + bool(self.column_names))
        height = side + _GAP + _LINE * bool(self.captions)
        left = self._width_and_left(side)[1]
        return left + column * (side + _GAP), top + row * height

    def _width_and_left(self, side: int) -> tuple[int, int]:
        """Width of the sheet, with room for the longest title, and where the images begin."""
        left = _GAP + _longest(self.row_names) + _GAP * bool(self.row_names)
        images = left + self.columns * (side + _GAP)
        width = max(images, _longest(self.titles) + 2 * _GAP)
        return width, left + (width - images) // 2


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """Enlarge an image (S, S, 3) uint8 a whole number of times up to `side`, or shrink it."""
    times = side // len(image)
    if times:
        return image.repeat(times, axis=0).repeat(times, axis=1)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))


@functools.cache
def get_font() -> ImageFont.FreeTypeFont:
    """Load Matplotlib's own font, so that pictures look alike on all machines."""
    path = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    return ImageFont.truetype(path, size=14)


def _longest(texts: Sequence[str]) -> int:
    """Width of the longest text, pixels."""
    return max((math.ceil(get_font().getlength(text)) for text in texts), default=0)


def fitted(text: str, width: int) -> str:
    """Cut a text to a width, pixels."""
    shown = text
    while text and get_font().getlength(shown) > width:
        text = text[:-1]
        shown = f"{text}…"
    return shown


def write_picture(picture: Image.Image | Figure | Sequence[Image.Image], path: Path) -> None:
    """Write an image or a figure as PNG, or frames as an endless GIF."""
    with replacing(path, durable=False) as temporary:
        if path.suffix == ".gif":
            # Each frame has 256 colours of its own.
            first, *others = [frame.quantize(256, dither=Image.Dither.NONE) for frame in picture]
            duration = [400] * len(others) + [2000]  # milliseconds
            frames = dict(save_all=True, append_images=others, duration=duration, loop=0)
            first.save(temporary, format="GIF", **frames)
        elif isinstance(picture, Image.Image):
            picture.save(temporary, format="PNG", optimize=True)
        else:
            picture.savefig(temporary, format="png", dpi=150)
    logger.info("wrote %s", path)
