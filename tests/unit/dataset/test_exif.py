"""A picture opens whatever its metadata holds, turned if the orientation can be read."""

import io
import random
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dataset.pictures import open_rgb

ASCII = 2  # a type of values
HEAD = b"Exif\0\0"
PIXELS = np.random.default_rng(0).integers(0, 256, size=(16, 24, 3), dtype=np.uint8)
STORED, QUARTER = Image.fromarray(PIXELS), np.rot90(PIXELS, -1)
# What is shown of what is stored, by orientation.
SHOWN = {1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1]}
SHOWN |= {5: QUARTER[:, ::-1], 6: QUARTER, 7: QUARTER[::-1], 8: QUARTER[::-1, ::-1]}
UPRIGHT = Image.fromarray(np.ascontiguousarray(SHOWN[6]))
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
# Of a TIFF, tags that say nothing of where its pixels are.
TAGS = (0x10E, 0x10F, 0x110, 0x112, 0x11A, 0x11B, 0x128, 0x131, 0x132, 0x8769, 0x8825)
# How each kind of file is written, without a resolution outside of EXIF.
KINDS = {
    "jpeg": {"format": "JPEG", "quality": 100, "subsampling": 0},
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True},
    "tiff": {"format": "TIFF", "compression": "tiff_lzw"},
}


def usual_exif(order: str) -> Image.Exif:
    """What cameras write, of a picture that is to be turned clockwise."""
    exif = Image.Exif()
    exif.endian = order
    exif.update({0x10E: "a picture of something", 0x10F: "Maker", 0x110: "Model", 0x112: 6})
    exif.update({0x11A: 72.0, 0x11B: 72.0, 0x128: 2, 0x131: "1.0", 0x132: "2020:01:01 00:00:00"})
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0x8827: 100, 0x927C: b"maker's note"})
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    return exif


def entries_of(content: bytes) -> dict[int, int]:
    """Where the entries of a TIFF's first directory are, by tag."""
    order = "<" if content.startswith(b"II") else ">"
    (first,) = struct.unpack_from(f"{order}L", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, first)
    places = range(first + 2, first + 2 + 12 * count, 12)
    return {struct.unpack_from(f"{order}H", content, at)[0]: at for at in places}


def changed(content: bytes, places: Sequence[int], draw: random.Random) -> bytes:
    """With other bytes in some of the places, most of them types that there are or nearly are."""
    new = bytearray(content)
    for at in draw.choices(places, k=draw.randint(1, 4)):
        new[at] = draw.choice([*range(14), 255, draw.randrange(256)])
    return bytes(new)


def file_of(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    STORED.save(file, **KINDS[kind], **options)
    content = file.getvalue()
    # JFIF's own resolution would keep Pillow from looking for one in EXIF; cameras write none.
    return content[:2] + content[20:] if kind == "jpeg" else content


def opened(content: bytes) -> Image.Image:
    return open_rgb(io.BytesIO(content), "picture", upright=True)


def shows(found: Image.Image, expected: np.ndarray, kind: str) -> bool:
    """Whether it is this picture: of noise, which only a JPEG changes, not to that of another."""
    pixels, bound = np.asarray(found, dtype=int), 20 if kind == "jpeg" else 1e-9
    return pixels.shape == expected.shape and np.abs(pixels - expected).mean() < bound


@pytest.mark.parametrize("kind", KINDS)
def test_every_orientation_is_obeyed_once(kind: str) -> None:
    exif = Image.Exif()
    for orientation, expected in SHOWN.items():
        exif[0x112] = orientation
        assert shows(opened(file_of(kind, exif=exif)), expected, kind)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("text", [b"72\0", b"7\0", b"\0", b"x\0"])
def test_text_in_place_of_numbers(kind: str, text: bytes) -> None:
    exif = bytearray(usual_exif("<").tobytes())
    resolution, orientation = (
        len(HEAD) + entries_of(exif[len(HEAD) :])[tag] for tag in (0x11A, 0x112)
    )
    struct.pack_into("<HL4s", exif, resolution + 2, ASCII, len(text), text)
    assert opened(file_of(kind, exif=bytes(exif))).size == UPRIGHT.size
    struct.pack_into("<HL4s", exif, orientation + 2, ASCII, 1, b"\6")
    assert opened(file_of(kind, exif=bytes(exif))).size == STORED.size


def test_an_orientation_outside_of_exif() -> None:
    profile, xmp, block = PngInfo(), PngInfo(), usual_exif("<").tobytes()
    profile.add_text("Raw profile type exif", f"\nexif\n{len(block)}\n{block.hex()}\n")
    xmp.add_itxt("XML:com.adobe.xmp", XMP)
    for info in (profile, xmp):
        np.testing.assert_array_equal(opened(file_of("png", pnginfo=info)), UPRIGHT)
    for kind in ("webp", "jpeg"):
        assert opened(file_of(kind, xmp=XMP.encode())).size == UPRIGHT.size


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about what it cannot read
@pytest.mark.parametrize("count", [1500, pytest.param(15_000, marks=pytest.mark.slow)])
def test_damaged_metadata_is_no_damaged_picture(count: int) -> None:
    draw = random.Random(count)
    for number in range(count):
        kind, exif = list(KINDS)[number % len(KINDS)], usual_exif(draw.choice("<>"))
        shown = SHOWN.values()
        if kind == "tiff":
            # Behind it what larger types make longer: without its directory there is no picture.
            content = file_of(kind, exif=exif) + bytes(2000)
            types = [
                at + i for tag, at in entries_of(content).items() if tag in TAGS for i in (2, 3)
            ]
            content = changed(content, types, draw)
        else:
            content = exif.tobytes().removeprefix(HEAD)
            entries, places = entries_of(content), range(len(content))
            end = max(entries.values()) + 12
            if draw.random() < 0.7:  # without harm to the orientation, which is then obeyed
                shown = [SHOWN[6]]
                del entries[0x112]
                places = [at + i for at in entries.values() for i in range(2, 12)]
                places += range(end, len(content))
            content = changed(content, places, draw)[: draw.randrange(end, 2 * len(content))]
            content = file_of(kind, exif=HEAD + content)
        found = opened(content)
        assert any(shows(found, one, kind) for one in shown), f"mutant {number}"
