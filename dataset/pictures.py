"""Pictures in: any image file to 8-bit RGB, turned upright if asked, and ADM's centre crop."""

import struct
import zlib
from contextlib import nullcontext, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from util.errors import UserError
from util.files import open_file

# What Pillow is seen to raise on damaged files: it takes metadata to have the usual types.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError)
_DAMAGED += (ArithmeticError, struct.error, zlib.error, Image.DecompressionBombError)
_EXIF = b"Exif\0\0"  # what it begins with in files that hold more than one kind of metadata
_ORIENTATION = ExifTags.Base.Orientation
# What the values of the orientation tag from 2 on ask viewers to do.
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_TURN_OF = {value: Image.Transpose[name] for value, name in enumerate(_TURNS.split(), start=2)}


def open_rgb(
    source: str | Path | BinaryIO,
    name: str | None = None,
    behind_alpha: str | None = None,
    upright: bool = False,
) -> Image.Image:
    """Decode an image file of any mode, by path or opened, to 8-bit RGB, or raise a `UserError`.

    Alpha is dropped, not composited on a colour `behind_alpha`, and orientation tags are ignored
    but in TIFFs and where it is to be `upright`, as ADM and Pillow do; 16-bit greyscale keeps its
    high byte, as Pillow does for 16-bit colour. Messages say `name`, by default the source.
    """
    opening = open_file if isinstance(source, str | Path) else nullcontext
    try:
        with opening(source) as stream, _opened(stream) as image:
            # Pillow itself turns TIFFs, as it loads them.
            turn = _turn_of(image) if upright and image.format != "TIFF" else None
            image.load()
            if image.mode != "RGB":  # `convert` would copy it
                image = _as_rgb(image, behind_alpha)
            return image if turn is None else image.transpose(turn)
    except _DAMAGED as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "damaged or not an image"
        raise UserError(
            f"{name or source}: cannot be decoded ({reason}), expected an image file"
        ) from error


def _opened(stream: BinaryIO) -> Image.Image:
    """`Image.open`, which takes a JPEG for none if the resolution in its EXIF is text."""
    try:
        return Image.open(stream)
    except Image.UnidentifiedImageError:
        stream.seek(0)
        before, name, after = stream.read().partition(_EXIF)
        if not (name and before.startswith(b"\xff\xd8\xff")):
            raise
        image = Image.open(BytesIO(before + bytes(len(name)) + after))
        image.info["exif"] = after
        return image


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """Read how to turn an image, whatever else of its metadata is damaged."""
    content = image.info.get("exif", b"").removeprefix(_EXIF)
    if (order := {b"II*\0": "little", b"MM\0*": "big"}.get(content[:4])) is not None:

        def read(at: int, size: int = 2) -> int:
            return int.from_bytes(content[at : at + size], order)

        # A directory: how many entries, then 12 bytes each: tag, type (3: short), count, value.
        first = read(4, 4) + 2
        for at in range(first, min(first + 12 * read(first - 2), len(content)), 12):
            if (read(at), read(at + 2), read(at + 4, 4)) == (_ORIENTATION, 3, 1):
                return _TURN_OF.get(read(at + 8))
    with suppress(*_DAMAGED):  # where else it may be, as in XMP, is left to Pillow
        return _TURN_OF.get(image.getexif().get(_ORIENTATION))
    return None


def _as_rgb(image: Image.Image, behind_alpha: str | None) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
        high_bytes = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        image = Image.fromarray(high_bytes.astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours, without Pillow's warning
    if behind_alpha is not None and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, behind_alpha), image)
    return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop (method section 8): halve while large, resize the short side, cut."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    short = min(image.size)
    width, height = (round(side * size / short) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    if width > size:
        # Pillow resizes along x, then along y: cut the columns in between, the pixels are the same.
        image = image.resize((width, image.height), Image.Resampling.BICUBIC)
        image = image.crop((left, 0, left + size, image.height))
        width, left = size, 0
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))
