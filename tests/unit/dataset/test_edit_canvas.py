"""From pictures of any size to squares and back."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.edit_canvas import box_mask, fit, open_mask, outpaint
from dataset.pictures import center_crop

SIZES = [(32, 32), (33, 50), (100, 40), (64, 129), (7, 5), (1, 1), (1, 90), (400, 300)]


def noise(width: int, height: int) -> Image.Image:
    draws = np.random.default_rng(width * height)
    return Image.fromarray(draws.integers(256, size=(height, width, 3), dtype=np.uint8))


def none(image: Image.Image) -> np.ndarray:
    return np.zeros((image.height, image.width), dtype=bool)


@pytest.mark.parametrize("size", SIZES)
def test_crop_is_that_of_the_training_data_and_pad_shows_all(size: tuple[int, int]) -> None:
    image = noise(*size)
    canvas = fit(image, none(image), 32)
    np.testing.assert_array_equal(canvas.pixels, np.asarray(center_crop(image, 32)))
    np.testing.assert_array_equal(canvas.picture(canvas.pixels), canvas.pixels)
    canvas = fit(image, ~none(image), 32, "pad")
    height, width = canvas.picture(canvas.pixels).shape[:2]
    assert max(height, width) == 32 and canvas.pixels.shape == (32, 32, 3)
    assert (width >= height) == (size[0] >= size[1]) or min(size) == 1
    assert canvas.mask.sum() == height * width  # beside the picture nothing is masked
    assert canvas.mask[canvas.rows, canvas.columns].all()


def test_pad_keeps_proportions_and_mirrors_beside_the_picture() -> None:
    image = noise(32, 20)
    canvas = fit(image, none(image), 32, "pad")
    assert (canvas.rows, canvas.columns) == (slice(6, 26), slice(0, 32))
    np.testing.assert_array_equal(canvas.picture(canvas.pixels), np.asarray(image))
    np.testing.assert_array_equal(canvas.pixels[:6], canvas.pixels[6:12][::-1])
    np.testing.assert_array_equal(canvas.pixels[26:], canvas.pixels[20:26][::-1])
    assert canvas.picture(np.stack([canvas.pixels] * 3)).shape == (3, 20, 32, 3)


@pytest.mark.parametrize("size", [(32, 32), (90, 70), (4000, 3000), (5, 9), (10, 8)])
@pytest.mark.parametrize(("how", "resized", "left"), [("pad", (32, 26), 0), ("crop", (40, 32), 4)])
def test_masked_is_a_pixel_in_which_any_masked_pixel_lies(size, how, resized, left) -> None:
    (across, down), (width, height) = resized, size
    mask = np.zeros((height, width), dtype=bool)  # of another size than the image will do
    mask[height // 2, width // 2] = mask[0, 0] = mask[height // 3, -1] = True
    canvas = fit(Image.new("RGB", (100, 80)), mask, 32, how)
    found = canvas.mask[canvas.rows, canvas.columns]
    assert found.shape == (down, 32) and canvas.token_mask(4).reshape(8, 8)[4, 4]
    for (y, x), pixel in np.ndenumerate(found):
        rows = slice(y * height // down, -(-(y + 1) * height // down))
        columns = slice((x + left) * width // across, -(-(x + left + 1) * width // across))
        assert pixel == mask[rows, columns].any()


def test_cells_with_a_masked_pixel_are_generated_and_others_beside_a_padded_picture() -> None:
    image = noise(32, 32)
    tokens = fit(image, box_mask(image, (8, 8, 13, 12)), 32).token_mask(4).reshape(8, 8)
    assert np.argwhere(tokens).tolist() == [[2, 2], [2, 3]]
    image = noise(32, 18)  # rows 7 to 24: the cells of rows 1 and 6 hold some of it
    tokens = fit(image, box_mask(image, (0, 8, 1, 9)), 32, "pad").token_mask(4).reshape(8, 8)
    expected = np.zeros((8, 8), dtype=bool)
    expected[[0, 7]] = True
    expected[3, 0] = True  # row 8 of the image is row 15 of the square
    np.testing.assert_array_equal(tokens, expected)
    assert not fit(image, none(image), 32, "pad").token_mask(4).any()


def test_composite_keeps_all_outside_the_feather() -> None:
    image = noise(32, 32)
    canvas = fit(image, box_mask(image, (10, 10, 20, 20)), 32)
    images = np.full((2, 32, 32, 3), 255, dtype=np.uint8)
    for feather in (0, 1, 5):
        result = canvas.composite(images, feather)
        assert (result[:, 10:20, 10:20] == 255).all()
        outside = np.ones((32, 32), dtype=bool)
        outside[10 - feather : 20 + feather, 10 - feather : 20 + feather] = False
        for one in result:
            np.testing.assert_array_equal(one[outside], canvas.pixels[outside])
    dark = fit(Image.new("RGB", (32, 32)), canvas.mask, 32)
    ramp = dark.composite(images, 3)[0, 15, 19:25, 0]
    np.testing.assert_array_equal(ramp, np.rint(255 * np.array([1, 0.75, 0.5, 0.25, 0, 0])))
    unmasked = fit(image, none(image), 32)
    np.testing.assert_array_equal(unmasked.composite(images, 4), np.stack([unmasked.pixels] * 2))


@pytest.mark.parametrize(("turns", "side"), [*enumerate(["left", "top", "right", "bottom"])])
def test_outpainting_crops_at_the_new_side(turns: int, side: str) -> None:
    image = noise(32, 32)
    larger, mask = outpaint(image, side, 12)
    assert mask.sum() == 12 * 32 and sorted(larger.size) == [32, 44]
    canvas = fit(larger, mask, 32, towards=side)
    assert (np.rot90(canvas.mask, turns) == (np.arange(32) < 12)).all()
    kept = np.rot90(canvas.pixels, turns)[:, 12:]
    np.testing.assert_array_equal(kept, np.rot90(np.asarray(image), turns)[:, :20])
    padded = fit(larger, mask, 32, "pad")  # shows all
    assert padded.picture(padded.mask[..., None]).mean() == pytest.approx(12 / 44, abs=0.05)
    with pytest.raises(ValueError, match="found 30000 pixels, expected fewer"):
        outpaint(Image.new("RGB", (1, 30_000)), "left", 30_000)


def test_masks_may_be_the_picture_scaled_and_rounded(tmp_path: Path) -> None:
    def opened(size: tuple[int, int], mask: tuple[int, int]) -> np.ndarray:
        Image.new("1", mask).save(tmp_path / "mask.png")
        return open_mask(tmp_path / "mask.png", Image.new("RGB", size))

    for size, mask in (((3000, 2000), (256, 171)), ((257, 171), (3000, 2000)), ((5, 9), (50, 90))):
        assert opened(size, mask).shape == mask[::-1]
    for size, mask in (((16, 16), (3, 2)), ((2, 3), (16, 16)), ((300, 200), (300, 203))):
        with pytest.raises(ValueError, match="expected its size or proportions"):
            opened(size, mask)


def test_white_is_half_white_not_transparent_and_turned_upright(tmp_path: Path) -> None:
    white = np.zeros((8, 12), dtype=bool)
    white[2:5, 3:] = True
    shades = Image.fromarray(np.where(white, 128, 127).astype(np.uint8))
    masks = [shades, *(Image.new(mode, shades.size, "white") for mode in ("RGBA", "LA"))]
    for mask in masks[1:]:  # as some programs save it
        mask.putalpha(shades)
    exif = Image.Exif()
    exif[0x0112] = 6
    for mask in masks:
        mask.save(tmp_path / "mask.png", exif=exif)
        opened = open_mask(tmp_path / "mask.png", noise(8, 12))
        np.testing.assert_array_equal(opened, np.rot90(white, -1))
