"""PNG files written beside other work."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation import samples as png_writers
from evaluation.samples import PngWriters, SampleFolder
from util.images import MADE_BY

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("max_waiting", [0, 2, 100])
def test_every_image_is_written_under_its_id(
    tmp_path: Path, max_waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png_writers, "MAX_WAITING", max_waiting)
    with PngWriters(SampleFolder(tmp_path, "these settings")) as writers:
        writers.write(IMAGES[:4], [7, 3, 123_456, 0])
        writers.write(IMAGES[4:], np.array([1, 2]))
    names = ["00007.png", "00003.png", "123456.png", "00000.png", "00001.png", "00002.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for name, image in zip(names, IMAGES, strict=True):
        found = Image.open(tmp_path / name)
        assert np.array_equal(np.asarray(found), image)
        assert found.info == {MADE_BY: "these settings"}


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    with PngWriters(None) as writers:
        writers.write(IMAGES, range(6))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_is_raised(tmp_path: Path) -> None:
    with pytest.raises(OSError), PngWriters(SampleFolder(tmp_path / "missing", "")) as writers:
        writers.write(IMAGES, range(6))


def test_the_error_of_the_block_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyError), PngWriters(SampleFolder(tmp_path / "missing", "")) as writers:
        writers.write(IMAGES, range(6))
        raise KeyError
