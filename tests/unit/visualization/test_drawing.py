from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visualization.drawing import Sheet, fitted, get_font, resized, write_picture


def images(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("side", "words"),
    [
        (8, {}),
        (20, {"row_names": ["a", "a long name"], "titles": ["short", "wider than all the images"]}),
        (20, {"column_names": ["a", "b", "c"]}),
        (64, {"captions": list("abcde"), "row_names": ["a", "b"], "titles": ["one", "two"]}),
    ],
)
def test_images_stand_where_the_sheet_says(side: int, words: dict) -> None:
    own, scale = images(5, 8), side // 8
    sheet, shown = Sheet(3, side=side, **words), scale * 8
    picture = np.array(sheet.draw(own))
    if "titles" in words:
        assert np.asarray(sheet.draw(own, 1)).shape == picture.shape
    for index, image in enumerate(own):
        left, top = sheet.corner(index, shown)
        found = picture[top : top + shown, left : left + shown]
        assert np.array_equal(found, np.kron(image, np.ones((scale, scale, 1), dtype=np.uint8)))
        picture[top : top + shown, left : left + shown] = 255
    assert (picture.min() < 255) == bool(words)
    # Nothing is cut off: white all around.
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge == 255).all()


def test_large_images_are_shrunk_and_long_words_cut() -> None:
    flat = np.full((256, 256, 3), (10, 200, 30), dtype=np.uint8)
    assert np.array_equal(resized(flat, 100), np.full((100, 100, 3), (10, 200, 30)))
    assert len(resized(flat, 300)) == 256
    assert fitted("zero", 100) == "zero"
    cut = fitted("a class with a very long name", 64)
    assert cut.endswith("…") and len(cut) > 3 and get_font().getlength(cut) <= 64
    assert fitted("anything", 0) == "…"


def test_a_gif_is_its_frames(tmp_path: Path) -> None:
    sheet = Sheet(2, side=16, titles=["one", "two", "three"])
    frames = [sheet.draw(images(2, 2), number) for number in range(3)]
    write_picture(frames, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3 and gif.info["loop"] == 0
        for number, frame in enumerate(frames):
            gif.seek(number)
            assert gif.info["duration"] == (2000 if number == 2 else 400)
            assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - np.asarray(frame)).max() <= 8
    still = tmp_path / "a.png"
    still.write_bytes(b"old")
    with pytest.raises(OSError, match="cannot write mode HSV"):  # nothing half-written stays
        write_picture(Image.new("HSV", (8, 8)), still)
    assert len([*tmp_path.iterdir()]) == 2 and still.read_bytes() == b"old"
