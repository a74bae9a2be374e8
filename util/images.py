"""Pixels in and out: decode, ADM centre crop, value ranges, PNGs and sample archives."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from util.errors import UserError
from util.files import open_file, replacing

Pixels = np.ndarray | torch.Tensor

# The text in a PNG that says which settings made it.
MADE_BY = "Made-By"
_PNG_SIGNATURE, _JPEG_SIGNATURE = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# What EXIF begins with in files that hold more than one kind of metadata.
_EXIF = b"Exif\0\0"
# What Pillow is seen to raise on damaged files: it takes metadata to have the usual types.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError)
_DAMAGED += (ArithmeticError, struct.error, zlib.error, Image.DecompressionBombError)
_ORIENTATION = 0x0112
_SHORT = 3  # the type of that tag: two bytes
# What its values ask viewers to do.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_rgb(
    source: str | Path | BinaryIO,
    name: str | None = None,
    behind_alpha: str | None = None,
    upright: bool = False,
) -> Image.Image:
    """Decode an image file of any mode to 8-bit RGB.

    Alpha is dropped (not composited) and orientation tags are ignored but in TIFFs, as ADM and
    Pillow do; 16-bit greyscale keeps its high byte, as Pillow does for 16-bit colour.

    Args:
        source: the file, by path or opened.
        name: what messages call it; by default `source`.
        behind_alpha: a colour on which transparent images are composited after all.
        upright: turn it as its orientation tag says, if that can be read.

    Raises:
        UserError: the file is missing, damaged or no image.
    """
    by_path = isinstance(source, str | Path)
    try:
        with (
            open_file(source) if by_path else nullcontext(source) as stream,
            _opened(stream) as image,
        ):
            turn = None
            if image.format == "TIFF":
                _simplify(image)  # Pillow turns it as it loads it
            elif upright:
                turn = _turn_of(image)
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
        if not (name and before.startswith(_JPEG_SIGNATURE)):
            raise
        image = Image.open(BytesIO(before + bytes(len(name)) + after))
        image.info["exif"] = after
        return image


def _simplify(image: Image.Image) -> None:
    """Leave a TIFF only its orientation: Pillow's turning fails where others are of wrong types."""
    with suppress(*_DAMAGED):
        image.getexif()
    exif = image.getexif()  # what the first call has read of it
    for tag in exif.keys() - {_ORIENTATION}:
        del exif[tag]


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """How to turn an image, by what can be read of its metadata."""
    stated = _orientation(image.info.get("exif", b""))
    if stated is None:  # where else it may be, as in XMP, is left to Pillow
        with suppress(*_DAMAGED):
            stated = image.getexif().get(_ORIENTATION)
    return _TURNS.get(stated)


def _orientation(exif: bytes) -> int | None:
    """The orientation in an EXIF block, whatever else of it is damaged; None if it is not there."""
    content = exif.removeprefix(_EXIF)
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(content[:4])
    if order is None:
        return None

    def read(at: int, size: int = 2) -> int:
        return int.from_bytes(content[at : at + size], order)

    # A directory: how many entries, then of each 12 bytes tag, type, count and value.
    first = read(4, 4) + 2
    for at in range(first, min(first + 12 * read(first - 2), len(content)), 12):
        if (read(at), read(at + 2), read(at + 4, 4)) == (_ORIENTATION, _SHORT, 1):
            return read(at + 8)
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
    """ADM's centre crop (method section 8) to a square of `size` pixels a side.

    Halve with BOX while large, resize the short side to `size` with BICUBIC, cut the middle.
    """
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


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Pixels (uint8) to network range, float32 in [-1, 1], of the same shape."""
    return images.float() / 255 * 2 - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Network range to pixels, rounded and clipped (method section 7).

    (B, 3, S, S) floating point, nominally in [-1, 1], becomes (B, S, S, 3) uint8, contiguous.
    """
    pixels = ((images.float() + 1) / 2 * 255).clamp(0, 255).round()
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def image_file(folder: Path, image_id: int) -> Path:
    """Where a sample is saved."""
    return folder / f"{image_id:05d}.png"


def is_whole_png(content: bytes) -> bool:
    """Whether a PNG file is what was written: all chunks to the last, each with its checksum.

    A decoder is content with less: it passes over a damaged checksum, or a missing end.
    """
    kind, start = b"", len(_PNG_SIGNATURE)
    if not content.startswith(_PNG_SIGNATURE):
        return False
    while kind != b"IEND":
        # Length of the data, kind, data, checksum of the two before.
        kind = content[start + 4 : start + 8]
        end = start + 8 + int.from_bytes(content[start : start + 4], "big")
        if content[end : end + 4] != zlib.crc32(content[start + 4 : end]).to_bytes(4, "big"):
            return False
        start = end + 4
    return start == len(content)


def save_png(image: Pixels, path: str | Path, made_by: str | None = None) -> None:
    """Write one image, (S, S, 3) uint8, as a PNG file; `made_by` goes into it as `MADE_BY`."""
    text = PngInfo()
    if made_by is not None:
        text.add_text(MADE_BY, made_by)
    with replacing(path, durable=False) as temporary:
        Image.fromarray(_as_pixels(image, 3)).save(temporary, format="PNG", pnginfo=text)


def image_grid(images: Pixels, columns: int, gap: int = 2) -> np.ndarray:
    """Join images, (n, S, S, 3) uint8, row by row into one, with white gaps of `gap` pixels."""
    pixels = _as_pixels(images, 4)
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


def write_npz_archive(path: str | Path, images: Iterable[Pixels], count: int) -> None:
    """Write the sample archive ADM's evaluator reads: `arr_0`, (count, S, S, 3) uint8.

    Images go to the file one by one, uncompressed, so need not fit in memory together. A
    `ValueError` if they are of several sizes, or not `count`.
    """
    shape, written = None, 0
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        for written, image in enumerate(images, start=1):
            pixels = _as_pixels(image, 3)
            if shape is None:
                shape = pixels.shape
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
                np.lib.format.write_array_header_1_0(member, header)
            if pixels.shape != shape:
                raise ValueError(
                    f"image {written - 1}: found shape {pixels.shape}, expected {shape}"
                )
            member.write(pixels.data)
        if written != max(count, 1):
            raise ValueError(f"found {written} images, expected {max(count, 1)}")


def _as_pixels(images: Pixels, dimensions: int) -> np.ndarray:
    """Return `images` as a C-contiguous uint8 array of (..., 3), or raise a ValueError."""
    pixels = images.cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    if pixels.dtype != np.uint8 or pixels.ndim != dimensions or pixels.shape[-1] != 3:
        expected = "(S, S, 3)" if dimensions == 3 else "(n, S, S, 3)"
        raise ValueError(f"found {pixels.dtype} {pixels.shape}, expected uint8 {expected}")
    return np.ascontiguousarray(pixels)
