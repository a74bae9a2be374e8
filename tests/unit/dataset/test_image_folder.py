"""Listing image folders and reading them in batches."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.image_folder import image_batches, list_images
from dataset.pictures import center_crop, open_rgb
from util.errors import UserError


def _make_image(file: Path, value: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), (value, 0, 255 - value)).save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for value, name in enumerate(("b/2.png", "b/10.JPG", "b/deep/1.jpeg", "a/x.bmp", "a/y.PNG")):
        _make_image(tmp_path / name, value * 20)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "._x.png").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "readme.png").touch()
    return tmp_path


def test_listing_is_sorted_and_labels_follow_class_names(root: Path) -> None:
    images = list_images(root)
    names = [path.relative_to(root).as_posix() for path in images.paths]
    assert names == ["a/x.bmp", "a/y.PNG", "b/10.JPG", "b/2.png", "b/deep/1.jpeg"]
    assert images.classes == ("a", "b")
    assert images.labels.tolist() == [0, 0, 1, 1, 1]
    assert images.labels.dtype == np.int64
    assert len(images) == 5


def test_train_folder_is_taken_where_there_is_one(root: Path) -> None:
    _make_image(root / "train" / "only" / "1.png")
    images = list_images(root)
    assert images.classes == ("only",)
    assert images.paths == (root / "train" / "only" / "1.png",)


def test_unusable_folders_are_one_line(root: Path, tmp_path: Path) -> None:
    (root / "c" / "deep").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^--data_path: class folder .*/c holds no images"):
        list_images(root)
    with pytest.raises(UserError, match=r"^--other: .*nowhere does not exist"):
        list_images(tmp_path / "nowhere", flag="--other")
    with pytest.raises(UserError, match="is not a folder"):
        list_images(root / "readme.png")
    with pytest.raises(UserError, match="no class folders"):
        list_images(root / "c" / "deep")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_hold_the_crops_in_order(root: Path, num_workers: int) -> None:
    images = list_images(root)
    wanted = [np.array([4, 0]), np.array([2])]
    state = torch.get_rng_state()
    batches = list(image_batches(images, 8, wanted, num_workers, pin_memory=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert [batch.indices.tolist() for batch in batches] == [[4, 0], [2]]
    assert [batch.labels.tolist() for batch in batches] == [[1, 0], [1]]
    assert batches[0].images.shape == (2, 3, 8, 8)
    assert batches[0].images.dtype == torch.uint8
    for batch in batches:
        for pixels, index in zip(batch.images, batch.indices, strict=True):
            expected = np.asarray(center_crop(open_rgb(images.paths[index]), 8))
            np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_file_is_one_line_of_the_main_process(root: Path, num_workers: int) -> None:
    (root / "b" / "2.png").write_bytes(b"damaged")
    batches = image_batches(list_images(root), 8, [np.arange(2), np.arange(2, 5)], num_workers)
    assert next(batches).indices.tolist() == [0, 1]
    with pytest.raises(UserError, match=r"b/2\.png") as caught:
        next(batches)
    assert "\n" not in str(caught.value)


def test_corrupt_file_can_be_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "b" / "2.png").write_bytes(b"damaged")
    batches = [np.array([2, 3]), np.array([3]), np.array([4])]
    with caplog.at_level(logging.WARNING):
        found = list(image_batches(list_images(root), 8, batches, skip_bad=True))
    assert [batch.indices.tolist() for batch in found] == [[2], [], [4]]
    assert found[1].images.shape == (0, 3, 8, 8)
    assert [record.getMessage().count("2.png") for record in caplog.records] == [1, 1]
