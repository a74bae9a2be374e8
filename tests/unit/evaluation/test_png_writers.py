"""The images of an evaluation on disk: written beside other work, told whole, archived."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import samples as png_writers
from evaluation.samples import PngWriters, SampleFolder, is_whole_png, write_npz_archive
from util.images import MADE_BY, save_png

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


def test_a_png_is_whole_only_as_it_was_written(tmp_path: Path) -> None:
    save_png(IMAGES[0], tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    assert is_whole_png(content)
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        assert not is_whole_png(bytes(flipped)), at
        assert not is_whole_png(content[:at]), at
    assert not is_whole_png(content + b"\0")


def test_an_archive_is_read_by_numpy(tmp_path: Path) -> None:
    write_npz_archive(tmp_path / "x.npz", (torch.from_numpy(image) for image in IMAGES), count=6)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        assert archive.files == ["arr_0"]
        np.testing.assert_array_equal(archive["arr_0"], IMAGES)
        assert archive["arr_0"].dtype == np.uint8


def test_an_archive_that_fails_leaves_nothing(tmp_path: Path) -> None:
    for count in (5, 7):
        with pytest.raises(ValueError, match="found 6 images"):
            write_npz_archive(tmp_path / "x.npz", iter(IMAGES), count)
    with pytest.raises(ValueError, match="found 0 images"):
        write_npz_archive(tmp_path / "x.npz", [], 0)
    with pytest.raises(ValueError, match="image 1: found shape"):
        write_npz_archive(tmp_path / "x.npz", [IMAGES[0], IMAGES[0, :4]], 2)
    assert list(tmp_path.iterdir()) == []
