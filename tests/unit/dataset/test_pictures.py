"""Decoding, turning and cropping of pictures."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset.pictures import center_crop, open_rgb
from util.errors import UserError

COLOUR = (200, 100, 50)
PALETTE = Image.new("RGB", (6, 4), COLOUR).quantize(4)
NOISE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image", "options", "rgb"),
    [
        (Image.new("RGB", (6, 4), COLOUR), {}, COLOUR),
        (Image.new("RGBA", (6, 4), (*COLOUR, 0)), {}, COLOUR),  # alpha is dropped, not composited
        (Image.new("L", (6, 4), 77), {}, (77, 77, 77)),
        (Image.new("F", (6, 4), 77), {}, (77, 77, 77)),
        (Image.new("LA", (6, 4), (77, 0)), {}, (77, 77, 77)),
        (Image.new("1", (6, 4), 1), {}, (255, 255, 255)),
        (PALETTE, {}, COLOUR),
        (PALETTE, {"transparency": bytes([0, 128, 255, 255])}, COLOUR),
        (Image.new("CMYK", (6, 4), (0, 255, 255, 0)), {"compression": None}, (255, 0, 0)),
        # Sixteen bits of grey keep the high byte.
        (Image.fromarray(np.full((4, 6), 0x8142, dtype=np.uint16)), {}, (0x81, 0x81, 0x81)),
        (Image.fromarray(np.full((4, 6), 0x8142, dtype=np.int32)), {}, (0x81, 0x81, 0x81)),
    ],
)
def test_modes_become_rgb(tmp_path: Path, image: Image.Image, options: dict, rgb: tuple) -> None:
    path = tmp_path / ("a.tif" if image.mode in ("CMYK", "I;16", "I", "F") else "a.png")
    image.save(path, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = open_rgb(path)
    assert (found.mode, found.size, found.getpixel((1, 1))) == ("RGB", (6, 4), rgb)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about what it cannot read
def test_damaged_files_are_named(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp", "tiff"):
        file = tmp_path / f"cut.{suffix}"
        Image.fromarray(NOISE).save(file)
        content = file.read_bytes()
        for end in (0, 30, 100, len(content) // 2):
            file.write_bytes(content[:end])
            with pytest.raises(UserError, match=f"^{file}: cannot be decoded"):
                open_rgb(file)
    with pytest.raises(UserError, match=r"missing\.jpg"):
        open_rgb(tmp_path / "missing.jpg")


def adm_center_crop(image: Image.Image, size: int) -> np.ndarray:
    """The definition, method section 8, step by step on whole images."""
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), Image.Resampling.BOX)
    whole = tuple(round(side * size / min(image.size)) for side in image.size)
    pixels = np.asarray(image.resize(whole, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 70), st.integers(0, 99))
def test_center_crop_is_the_definition(width: int, height: int, size: int, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image, found = Image.fromarray(noise), center_crop(Image.fromarray(noise), size)
    assert found.size == (size, size)
    np.testing.assert_array_equal(np.asarray(found), adm_center_crop(image, size))
