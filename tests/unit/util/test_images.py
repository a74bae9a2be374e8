"""Decoding, value ranges, grids and archives."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from util.errors import UserError
from util.images import (
    center_crop,
    is_whole_png,
    open_rgb,
    save_grid,
    save_png,
    to_float,
    to_uint8,
    write_npz_archive,
)

COLOUR = (200, 100, 50)


def _pixel(path: Path) -> tuple[int, ...]:
    image = open_rgb(path)
    assert image.mode == "RGB"
    assert image.size == (6, 4)
    return image.getpixel((1, 1))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", COLOUR, COLOUR),
        ("RGBA", (*COLOUR, 0), COLOUR),  # alpha is dropped, not composited
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 0), (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_modes_become_rgb(
    tmp_path: Path, mode: str, colour: tuple[int, ...] | int, expected: tuple[int, ...]
) -> None:
    Image.new(mode, (6, 4), colour).save(tmp_path / "a.png")
    assert _pixel(tmp_path / "a.png") == expected


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    palette = Image.new("RGB", (6, 4), COLOUR).quantize(4)
    palette.save(tmp_path / "plain.png")
    palette.save(tmp_path / "clear.png", transparency=bytes([0, 128, 255, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _pixel(tmp_path / "plain.png") == COLOUR
        assert _pixel(tmp_path / "clear.png") == COLOUR


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (6, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = _pixel(tmp_path / "a.jpg")
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bit_greyscale_keeps_the_high_byte(tmp_path: Path, dtype: type) -> None:
    levels = np.full((4, 6), 0x8142, dtype=dtype)
    Image.fromarray(levels).save(tmp_path / "a.tif")
    assert _pixel(tmp_path / "a.tif") == (0x81, 0x81, 0x81)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for name in ("cut.png", "cut.jpg"):
        file = tmp_path / name
        Image.fromarray(noise).save(file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    for name in ("cut.png", "cut.jpg", "text.jpg", "empty.jpg", "missing.jpg"):
        with pytest.raises(UserError, match=name):
            open_rgb(tmp_path / name)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 24))
def test_center_crop_always_has_the_asked_size(width: int, height: int, size: int) -> None:
    assert center_crop(Image.new("RGB", (width, height)), size).size == (size, size)


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
def test_center_crop_has_the_pixels_of_the_definition(
    width: int, height: int, size: int, seed: int
) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    np.testing.assert_array_equal(
        np.asarray(center_crop(image, size)), adm_center_crop(image, size)
    )


def test_center_crop_takes_the_middle() -> None:
    image = Image.new("RGB", (64, 32))
    image.paste(COLOUR, (16, 0, 48, 32))
    found = np.asarray(center_crop(image, 32))
    np.testing.assert_array_equal(found, np.broadcast_to(COLOUR, (32, 32, 3)))


def test_pixels_survive_the_way_to_float_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    values = to_float(pixels)
    assert values.dtype == torch.float32
    assert (values.min(), values.max()) == (-1, 1)
    torch.testing.assert_close(to_uint8(values), pixels.permute(0, 2, 3, 1), rtol=0, atol=0)


def test_a_png_is_whole_only_as_it_was_written(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    save_png(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8), tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    assert is_whole_png(content)
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        assert not is_whole_png(bytes(flipped)), at
        assert not is_whole_png(content[:at]), at
    assert not is_whole_png(content + b"\0")


def test_to_uint8_rounds_and_clips() -> None:
    levels = torch.tensor([-300.0, -0.4, 0.4, 0.6, 99.4, 99.6, 254.6, 300.0])
    images = (levels / 255 * 2 - 1).expand(1, 3, 1, 8)
    expected = [0, 0, 0, 1, 99, 100, 255, 255]
    assert to_uint8(images)[0, 0, :, 2].tolist() == expected


def test_save_grid_places_images_with_white_gaps(tmp_path: Path) -> None:
    images = np.stack([np.full((4, 4, 3), value, dtype=np.uint8) for value in (10, 20, 30)])
    save_grid(images, tmp_path / "grid.png", columns=2, gap=2)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (10, 10, 3)
    assert (grid[:4, :4] == 10).all()
    assert (grid[:4, 6:] == 20).all()
    assert (grid[6:, :4] == 30).all()
    assert (grid[4:6] == 255).all()
    assert (grid[:, 4:6] == 255).all()
    assert (grid[6:, 6:] == 255).all()
    with pytest.raises(ValueError, match="0 images"):
        save_grid(images[:0], tmp_path / "none.png", columns=2)


def test_save_png_is_lossless_and_checks_its_input(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    save_png(image, tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)
    with pytest.raises(ValueError, match="float64"):
        save_png(image / 255, tmp_path / "b.png")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_archive_is_read_by_numpy(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    write_npz_archive(tmp_path / "all.npz", images, len(images))
    write_npz_archive(tmp_path / "stream.npz", (torch.from_numpy(i) for i in images), count=7)
    for name in ("all.npz", "stream.npz"):
        with np.load(tmp_path / name, allow_pickle=False) as archive:
            assert archive.files == ["arr_0"]
            np.testing.assert_array_equal(archive["arr_0"], images)
            assert archive["arr_0"].dtype == np.uint8


def test_archive_that_fails_leaves_nothing(tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    for bad, count in ((iter(images), 4), (iter(images), 2), (iter(images[:0]), 0)):
        with pytest.raises(ValueError, match=r"found \d images"):
            write_npz_archive(tmp_path / "a.npz", bad, count)
    with pytest.raises(ValueError, match="image 1"):
        write_npz_archive(tmp_path / "a.npz", [images[0], images[0, :4]], count=2)
    assert list(tmp_path.iterdir()) == []
