"""Pictures of rows and columns of images with words around them; PNG and GIF files."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from util.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WHITE, INK = (255, 255, 255), (34, 34, 34)
# Distinct to all kinds of colour vision (Okabe and Ito): blue, vermilion, green, purple, ...
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# The last frame of a GIF stays for so many times as long as the others.
LAST_FRAME = 5

_DPI = 150
# Between images, pixels.
_GAP = 6


@dataclass(frozen=True)
class Sheet:
    """Square images in rows and columns, and the words around them.

    Attributes:
        columns: images in a row.
        captions: below each image, if any.
        titles: above all, one for each picture that is drawn, if any.
        side: of an image on the sheet, pixels, as far as whole multiples of its own allow; larger
            ones are shrunk to it.
        text_size: height of the letters, pixels.
    """

    columns: int
    row_names: Sequence[str] = ()
    column_names: Sequence[str] = ()
    captions: Sequence[str] = ()
    titles: Sequence[str] = ()
    side: int = 128
    text_size: int = 14

    def draw(self, images: np.ndarray, number: int = 0) -> Image.Image:
        """Draw images (n, S, S, 3) uint8, row by row, under title `number`; RGB."""
        images = np.stack([resized(image, self.side) for image in images])
        side, font = images.shape[1], get_font(self.text_size)
        bottom = self.corner(len(images) - 1, side)[1] + side + self._line * bool(self.captions)
        sheet = Image.new("RGB", (self._width(side), bottom + _GAP), WHITE)
        words = ImageDraw.Draw(sheet)
        if self.titles:
            words.text((_GAP, _GAP), self.titles[number], INK, font)
        for index, image in enumerate(images):
            left, top = self.corner(index, side)
            sheet.paste(Image.fromarray(image), (left, top))
            if self.captions:
                self._write(words, self.captions[index], left, top + side + 3, side)
            if self.column_names and index < self.columns:
                self._write(words, self.column_names[index], left, top - self._line + 3, side)
            if self.row_names and index % self.columns == 0:
                name, middle = self.row_names[index // self.columns], top + side // 2
                words.text((left - _GAP, middle), name, INK, font, anchor="rm")
        return sheet

    def corner(self, index: int, side: int) -> tuple[int, int]:
        """Return the left and top edge of an image whose side on the sheet is `side` pixels."""
        row, column = divmod(index, self.columns)
        left = (self._width(side) - self._natural_width(side)) // 2 + _GAP + self._longest_row_name
        top = _GAP + self._line * (bool(self.titles) + bool(self.column_names))
        height = side + _GAP + self._line * bool(self.captions)
        return left + column * (side + _GAP), top + row * height

    def _width(self, side: int) -> int:
        """Of the sheet, with room for the longest title."""
        return max(self._natural_width(side), self._longest(self.titles) + 2 * _GAP)

    def _natural_width(self, side: int) -> int:
        return _GAP + self._longest_row_name + self.columns * (side + _GAP)

    @property
    def _longest_row_name(self) -> int:
        return self._longest(self.row_names) + _GAP * bool(self.row_names)

    @property
    def _line(self) -> int:
        """Height of a line of words."""
        return self.text_size + 8

    def _longest(self, texts: Sequence[str]) -> int:
        """Width of the longest text, pixels."""
        font = get_font(self.text_size)
        return max((math.ceil(font.getlength(text)) for text in texts), default=0)

    def _write(self, words: ImageDraw.ImageDraw, text: str, left: int, top: int, side: int) -> None:
        """Write a line centred above or below an image, cut to its width."""
        font = get_font(self.text_size)
        middle = left + side // 2
        words.text((middle, top), fitted(text, font, side), INK, font, anchor="ma")


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """Enlarge an image (S, S, 3) uint8 a whole number of times up to `side`, or shrink it."""
    own = len(image)
    if own <= side:
        return image.repeat(side // own, axis=0).repeat(side // own, axis=1)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))


@functools.cache
def get_font(size: int) -> ImageFont.FreeTypeFont:
    """Load Matplotlib's own font, so that pictures look alike on all machines."""
    import matplotlib  # slow to import

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut a text to a width, pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def write_gif(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    """Write an endless GIF, each frame with 256 colours of its own and `seconds` long."""
    first, *others = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    duration = round(1000 * seconds)
    durations = [duration] * len(others) + [duration * LAST_FRAME]
    with replacing(path, durable=False) as temporary:
        frames = dict(save_all=True, append_images=others, duration=durations, loop=0)
        first.save(temporary, format="GIF", **frames)


def write_png(picture: Image.Image | Figure, path: Path) -> None:
    """Write an image, or a figure of Matplotlib."""
    with replacing(path, durable=False) as temporary:
        if isinstance(picture, Image.Image):
            picture.save(temporary, format="PNG", optimize=True)
        else:
            picture.savefig(temporary, format="png", dpi=_DPI)
