"""From pictures of any size to squares and back."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.edit_canvas import SIDES, box_mask, fit, open_mask, outpaint
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
    batch = np.stack([canvas.pixels] * 3)
    assert canvas.picture(batch).shape == (3, 20, 32, 3)


@pytest.mark.parametrize("how", ["crop", "pad"])
@pytest.mark.parametrize("size", [(32, 32), (90, 70), (50, 81), (8, 12), (400, 300)])
def test_the_mask_goes_where_the_image_goes(size: tuple[int, int], how: str) -> None:
    """A bright block, masked: all that is bright is, and what is far away from it is not."""
    width, height = size
    box = (width // 3, height // 2, width // 3 + max(width // 5, 1), height // 2 + height // 4)
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), box)
    canvas = fit(image, box_mask(image, box), 32, how)
    brightness, mask = (
        canvas.picture(one[..., :1]) for one in (canvas.pixels, canvas.mask[..., None])
    )
    assert (brightness > 128).any() and mask[brightness > 128].all()
    assert mask[brightness < 2].sum() <= mask.sum() / 4


@pytest.mark.parametrize("size", [(32, 32), (90, 70), (4000, 3000), (5, 9), (10, 8)])
def test_masked_is_a_pixel_in_which_any_masked_pixel_lies(size: tuple[int, int]) -> None:
    image, (width, height) = Image.new("RGB", (100, 80)), size  # a mask of another size will do
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 2, width // 2] = mask[0, 0] = mask[height // 3, -1] = True
    canvas = fit(image, mask, 32, "pad")
    found = canvas.mask[canvas.rows, canvas.columns]
    for (y, x), pixel in np.ndenumerate(found):
        rows = slice(y * height // 26, -(-(y + 1) * height // 26))
        assert pixel == mask[rows, x * width // 32 : -(-(x + 1) * width // 32)].any()
    assert found.shape == (26, 32) and fit(image, mask, 32).token_mask(4).reshape(8, 8)[4, 4]


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
    ramp = canvas.composite(np.zeros_like(images), 3)[0, 15, 20:24] / np.maximum(
        canvas.pixels[15, 20:24], 1
    )
    np.testing.assert_allclose(ramp, np.repeat([[0.25], [0.5], [0.75], [1]], 3, axis=1), atol=0.05)
    unmasked = fit(image, none(image), 32)
    np.testing.assert_array_equal(unmasked.composite(images, 4), np.stack([unmasked.pixels] * 2))


@pytest.mark.parametrize("side", SIDES)
def test_outpainting_crops_at_the_new_side(side: str) -> None:
    image = noise(32, 32)
    larger, mask = outpaint(image, side, 12)
    assert mask.sum() == 12 * 32
    assert sorted(larger.size) == [32, 44]
    canvas = fit(larger, mask, 32, towards=side)
    new = np.zeros((32, 32), dtype=bool)
    where = {"left": np.s_[:, :12], "right": np.s_[:, 20:], "top": np.s_[:12], "bottom": np.s_[20:]}
    new[where[side]] = True
    np.testing.assert_array_equal(canvas.mask, new)
    turns = {"left": 0, "top": 1, "right": 2, "bottom": 3}[side]
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


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "F"])
def test_masks_of_any_mode(tmp_path: Path, mode: str) -> None:
    white = np.zeros((8, 8), dtype=bool)
    white[2:5, 3:] = True
    grey = Image.fromarray((white * 255).astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray((white * 65535).astype(np.uint16))
    elif mode in ("RGBA", "LA"):  # white all over, but transparent: as some programs save it
        image = Image.new(mode, (8, 8), "white")
        image.putalpha(grey)
    else:
        image = grey.convert(mode)
    path = tmp_path / ("mask.tif" if mode == "F" else "mask.png")
    image.save(path)
    np.testing.assert_array_equal(open_mask(path, noise(8, 8)), white)


def test_masks_are_turned_upright(tmp_path: Path) -> None:
    shown, exif = noise(20, 30), Image.Exif()
    exif[0x0112] = 6
    shown.save(tmp_path / "a.png", exif=exif)
    assert open_mask(tmp_path / "a.png", noise(30, 20)).shape == (20, 30)
