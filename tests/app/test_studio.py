"""What the page can do, without the page: it gives what the library gives."""

import io
from dataclasses import replace
from itertools import count, pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from app.display import as_image, canvas_of, canvas_side, paced, painted, status
from app.settings import Settings
from app.studio import Picture, Studio
from dataset.pictures import center_crop
from models.decoding import generate
from models.editing import edit
from models.sampling import SamplingSettings
from orders.locality import random_orders
from orders.sources import ORDERS
from tests.integration.tiny_world import GRID
from tests.unit.models.small import ProductDtypes
from tokenizers.encoding import encode
from visualization.generation import GREY, images_so_far

SETTINGS = Settings(
    label=1, count=3, seed=7, steps=5, sampling=SamplingSettings(cfg=20.0, temperature=0.9)
)
LIBRARY = {"cfg": 20.0, "temperature": 0.9, "seed": 7}
LIBRARY_ORDERS = {"lpd": None, "random": random_orders(3, GRID.num_tokens, 7)}
LIBRARY_ORDERS["raster"] = np.tile(np.arange(GRID.num_tokens), (3, 1))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("order", ORDERS)
def test_generation_gives_the_library_s_images_step_by_step(studio: Studio, order: str) -> None:
    frames = list(studio.generate(SETTINGS, order))
    expected = generate(studio.model, [1, 1, 1], LIBRARY_ORDERS[order], 5, **LIBRARY)
    assert torch.equal(frames[-1].tokens, expected)
    plain = generate(studio.model, [1, 1, 1], LIBRARY_ORDERS[order], 5, **{**LIBRARY, "cfg": 1.0})
    assert not torch.equal(plain, expected)
    pictures = studio.tokenizer.decode_images(expected)
    np.testing.assert_array_equal(frames[-1].images, np.stack([np.asarray(p) for p in pictures]))
    assert [frame.step for frame in frames] == list(range(6))
    assert [frame.done for frame in frames] == [False] * 5 + [True]
    assert (frames[0].images == GREY).all() and (frames[0].tokens == -1).all()
    with pytest.raises(ValueError, match="not finished"):
        frames[0].picture(0)
    taken = frames[-1].picture(2)
    assert torch.equal(taken.tokens, expected[2])
    np.testing.assert_array_equal(taken.pixels, frames[-1].images[2])
    for before, after in pairwise(frames):
        known = before.tokens >= 0
        assert torch.equal(after.tokens[known], before.tokens[known])
        assert (after.tokens >= 0).sum() > known.sum()
        now = images_so_far(studio.tokenizer, after.tokens).numpy()
        np.testing.assert_array_equal(after.images, now)


def test_orders_are_compared_and_visitors_served_at_once_as_alone(studio: Studio) -> None:
    others = replace(SETTINGS, label=2, seed=8)
    stages = list(zip(studio.compare(SETTINGS), studio.generate(others), strict=True))
    compared, other = stages[-1]
    assert len(stages) == 6
    for order, frame in zip(ORDERS, compared, strict=True):
        assert torch.equal(frame.tokens, list(studio.generate(SETTINGS, order))[-1].tokens)
    assert torch.equal(other.tokens, list(studio.generate(others))[-1].tokens)
    with pytest.raises(ValueError, match="Order: found 'spiral', expected one of lpd, random"):
        studio.generate(SETTINGS, "spiral")


def left_half(side: int = 64) -> np.ndarray:
    return np.arange(side) < np.full((side, 1), side // 2)


@pytest.fixture(scope="module")
def picture(studio: Studio) -> Picture:
    return list(studio.generate(SETTINGS))[-1].picture(1)


def test_editing_gives_the_library_s_variants(studio: Studio, picture: Picture) -> None:
    frames = list(studio.edit(picture, left_half(), replace(SETTINGS, label=2)))
    mask = torch.from_numpy(left_half(GRID.side)).flatten()
    tokens, masks = picture.tokens.expand(3, -1), mask.expand(3, -1)
    # Half of the tokens: half of the 5 steps, rounded up.
    expected = edit(studio.model, tokens, masks, [2, 2, 2], num_steps=3, **LIBRARY)
    assert torch.equal(frames[-1].tokens, expected)
    assert [frame.step for frame in frames] == [0, 1, 2, 3]
    for frame in frames:
        assert torch.equal(frame.tokens[:, ~mask], tokens[:, ~mask])
    assert (frames[0].images[:, :, :8] == GREY).all()
    assert (frames[0].tokens[:, mask] == -1).all()


def test_all_a_spot_or_nothing_is_painted(studio: Studio, picture: Picture) -> None:
    frames = list(studio.edit(picture, np.ones((16, 16), dtype=bool), SETTINGS))
    assert torch.equal(frames[-1].tokens, list(studio.generate(SETTINGS))[-1].tokens)
    spot = np.zeros((512, 512), dtype=bool)
    spot[130, 511] = True  # in the second row of cells, at the right edge
    frames = list(studio.edit(picture, spot, SETTINGS))
    assert len(frames) == 2
    assert (frames[0].tokens[0] < 0).nonzero().tolist() == [[7]]
    with pytest.raises(ValueError, match="Nothing is painted: please brush over"):
        studio.edit(picture, np.zeros((8, 8), dtype=bool), SETTINGS)


def test_a_photograph_s_middle_square_is_edited_and_can_be_kept(studio: Studio) -> None:
    photograph = Image.fromarray(noise(40, 70, 3))
    own = studio.read_picture(photograph)
    middle = np.array(center_crop(photograph, 16))
    np.testing.assert_array_equal(own.pixels, middle)
    batch = torch.from_numpy(middle).permute(2, 0, 1)[None]
    assert torch.equal(own.tokens, encode(studio.tokenizer, batch)[0])
    plain = list(studio.edit(own, left_half(), SETTINGS))[-1].images
    kept = list(studio.edit(own, left_half(), SETTINGS, keep_pixels=True))[-1].images
    np.testing.assert_array_equal(kept[:, :, :8], plain[:, :, :8])
    np.testing.assert_array_equal(kept[:, :, 8:], np.stack([middle] * 3)[:, :, 8:])
    assert (plain[:, :, 8:] != kept[:, :, 8:]).any()


@pytest.mark.parametrize("bf16", [False, True])
def test_what_multiplies_is_bf16_if_asked(studio: Studio, picture: Picture, bf16: bool) -> None:
    asked = replace(studio, bf16=bf16)
    for frames in (asked.edit(picture, left_half(), SETTINGS), asked.generate(SETTINGS)):
        with ProductDtypes() as products:
            for frame in frames:
                # Between frames all is as it was: another thread may go on from here.
                assert not torch.is_autocast_enabled("cpu"), frame.step
        assert products.found == [torch.bfloat16 if bf16 else torch.float32]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        expected = generate(studio.model, [1, 1, 1], None, 5, **LIBRARY)
    assert torch.equal(frame.tokens, expected)


def test_frames_say_how_far_they_are(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr("app.studio.time.perf_counter", lambda: next(clock) * 0.5)
    frames = list(studio.generate(replace(SETTINGS, steps=2)))
    assert [frame.seconds for frame in frames] == [0, 0.5, 1]
    assert '<progress max="2" value="1">' in status(frames[1])
    decided = int((frames[1].tokens[0] >= 0).sum())
    assert f">step 1 of 2, {decided} of 16 tokens<" in status(frames[1])
    assert ">2 steps in 1.00 s<" in status(frames[2])


@pytest.mark.parametrize(("size", "side"), [(16, 512), (24, 504), (1024, 1024)])
def test_the_canvas_is_a_multiple_of_the_picture(size: int, side: int) -> None:
    picture = Picture(noise(size, size, 3), torch.zeros(1, dtype=torch.int64))
    shown = np.asarray(canvas_of(picture)["background"])
    assert canvas_side(size) == side and shown.shape == (side, side, 3)
    np.testing.assert_array_equal(shown[:: side // size, :: side // size], picture.pixels)


def test_the_same_picture_is_another_file_each_time() -> None:
    processing = pytest.importorskip("gradio.processing_utils")
    pixels = noise(16, 16, 3)
    files = [processing.encode_pil_to_bytes(as_image(pixels), "png") for _ in range(2)]
    assert files[0] != files[1]
    for content in files:
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)


def test_paint_is_what_is_opaque() -> None:
    layers = np.zeros((2, 16, 16, 4), dtype=np.uint8)
    layers[0, 5, 6, 3], layers[1, 7, 8, 3], layers[1, 9, 9, 3] = 128, 255, 127
    assert np.argwhere(painted({"layers": list(layers)})).tolist() == [[5, 6], [7, 8]]
    assert not painted({"layers": []}).any()
    assert not painted(None).any()


def test_frames_keep_their_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = []
    now = iter((1.0, 1.0, 1.2, 1.5, 3.5, 3.5))  # at the end of a wait and after the next work
    monkeypatch.setattr("app.display.time.monotonic", lambda: next(now))
    monkeypatch.setattr("app.display.time.sleep", slept.append)
    assert list(paced(iter("abc"), 0.5)) == list("abc")
    assert slept == pytest.approx([0, 0.3, 0])
