import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from evaluation.image_sources import ImageSource, open_images
from tests.fuzzing import damaged, one_line
from tests.unit.evaluation.scoring_files import random_images, write_folder
from util import distributed
from util.errors import UserError

IMAGES = random_images(11)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "images", IMAGES)


def archive(path: Path, packed: bool = False, images: np.ndarray = IMAGES) -> Path:
    (np.savez_compressed if packed else np.savez)(path, arr_0=images)
    return path


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, processes: int) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world_size", lambda: processes)


def pixels_of(source: ImageSource, batch_size: int = 4) -> dict[int, np.ndarray]:
    found = {}
    for ids, images in source.share(batch_size, num_workers=0):
        assert images.dtype == torch.uint8 and len(ids) == len(images) <= batch_size
        last = images if images.shape[3] == 3 else images.permute(0, 2, 3, 1)
        found |= dict(zip(ids.tolist(), last.numpy(), strict=True))
    return found


def all_images(found: dict[int, np.ndarray]) -> np.ndarray:
    return np.stack([found[place] for place in range(len(found))])


def refused(path: Path, found: str) -> None:
    with pytest.raises(UserError, match=rf"^--images: .{{,450}}{re.escape(found)}.{{,450}}$"):
        pixels_of(open_images(path, "--images"))


@pytest.mark.parametrize("kind", ["folder", "archive", "packed archive"])
@pytest.mark.parametrize("processes", [1, 3])
def test_processes_share_all_images(folder, tmp_path, monkeypatch, kind, processes):
    if kind != "folder":
        folder = archive(tmp_path / "x.npz", packed=kind.startswith("packed"))
    source = open_images(folder, "--images")
    assert len(source) == 11 and source.image_size == 32
    found: dict[int, np.ndarray] = {}
    for rank in range(processes):
        as_process(monkeypatch, rank, processes)
        share = pixels_of(source, batch_size=3)
        assert not share.keys() & found.keys()
        found |= share
    assert np.array_equal(all_images(found), IMAGES)


def test_a_reference_folder_is_cropped(folder):
    Image.fromarray(IMAGES[0][:, :28]).save(folder / "00007.png")
    assert all_images(pixels_of(open_images(folder, "--fid_stats", 16))).shape[1:] == (16, 16, 3)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (IMAGES[..., 0], "uint8 of shape (11, 32, 32)"),
        (IMAGES[:, :8], "uint8 of shape (11, 8, 32, 3)"),
        (IMAGES[:, :0, :0], "uint8 of shape (11, 0, 0, 3)"),
        (np.asfortranarray(IMAGES), "cannot be read (arr_0.npy is in Fortran's order"),
    ],
)
def test_unusable_archives(tmp_path, images, found):
    refused(archive(tmp_path / "x.npz", images=images), found)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_damage_to_an_archive_is_seen_by_every_process(tmp_path, monkeypatch, packed, rank):
    as_process(monkeypatch, rank, processes=2)
    path = archive(tmp_path / "x.npz", packed)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    longer = whole.replace(b"(11, 32, 32, 3)", b"(99, 32, 32, 3)")
    for content in [flipped] if packed else [flipped, longer]:
        path.write_bytes(content)
        refused(path, "damaged")


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data(), st.booleans())
def test_damaged_archives_are_refused_or_whole(tmp_path, data, packed):
    bad = archive(tmp_path / "bad.npz", packed)
    bad.write_bytes(data.draw(damaged(bad.read_bytes())))
    try:
        found = pixels_of(open_images(bad, "--images", 32))
    except UserError as error:
        assert one_line(error)
        return
    assert np.array_equal(all_images(found), IMAGES)


def test_a_pipe_among_the_images_is_refused_not_waited_for(tmp_path):
    folder = write_folder(tmp_path / "images", random_images(3))
    os.mkfifo(folder / "00003.png")
    with pytest.raises(UserError, match=r"--images: .*00003\.png.*is a pipe"):
        pixels_of(open_images(folder, "--images"))
