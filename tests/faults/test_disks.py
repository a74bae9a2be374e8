"""Disks that are full or cannot be written to: one line, and what was there stays and is used."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import disks
from tests.faults.conftest import SHARD, SHARDS, Start, Whole, same_cache
from tests.integration.test_resume import same_training
from tests.integration.tiny_world import TinyWorld
from training.checkpoint import LAST, PREVIOUS

pytestmark = pytest.mark.slow

PAGE = 4096  # what a disk gives out at a time


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with disks.disk(tmp_path / "disk") as folder:
        yield folder


@contextmanager
def filled(folder: Path, room: int) -> Iterator[None]:
    """The disk of `folder` has `room` bytes left while this is entered."""
    ballast = disks.fill(folder, room)
    yield
    ballast.unlink()


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob(pattern))}


@pytest.mark.parametrize("room", [0.5, 0.0])
def test_full_while_a_checkpoint_is_saved(
    trained: Whole, disk: Path, start: Start, room: float
) -> None:
    flags = trained.flags(disk, "--save_steps", 4)
    start("main_lpd", [*flags, "--epochs", 1]).succeeds()
    before = contents(disk, "*.pth")
    assert before.keys() >= {LAST, PREVIOUS}
    with filled(disk, int(room * len(before[LAST]))):
        line = start("main_lpd", flags).is_refused()
        assert line.endswith("No space left on device") and str(disk) in line, line
        assert contents(disk, "*.pth") == before
        assert not list(disk.glob(".*"))
    start("main_lpd", flags).succeeds()
    assert same_training(disk, trained.folder)


def test_full_while_a_cache_shard_is_written(cached: Whole, disk: Path, start: Start) -> None:
    output = disk / "cache"
    with filled(disk, SHARDS // 2 * PAGE):
        line = start("main_cache", cached.flags(output), shard_images=SHARD).is_refused()
        assert line.startswith(f"error: --cached_path: {output}") and "No space left" in line, line
        assert not list(output.glob(".*"))
        before = contents(output, "*.npz")
        assert 0 < len(before) < SHARDS
    said = start("main_cache", cached.flags(output), shard_images=SHARD).succeeds()
    assert f"{len(before)} of {SHARDS} shards are there already" in said
    assert same_cache(output, cached.folder)


def test_full_while_images_are_written(
    world: TinyWorld, disk: Path, tmp_path: Path, start: Start
) -> None:
    whole, output = tmp_path / "whole", disk / "samples"
    more = ("--log_dir", tmp_path / "log", "--save_npz")
    start("main_lpd", [*world.eval_flags(whole), *more]).succeeds()
    with filled(disk, 5 * PAGE):
        line = start("main_lpd", [*world.eval_flags(output), *more]).is_refused()
        assert str(output) in line and line.endswith("No space left on device"), line
        before = contents(output / "images", "*")
        assert 0 < len(before) < len(contents(whole / "images", "*"))
    said = start("main_lpd", [*world.eval_flags(output), *more]).succeeds()
    assert f"{len(before)} of 9 images are there already" in said
    assert contents(output / "images", "*") == contents(whole / "images", "*")
    assert contents(output, "*.npz") == contents(whole, "*.npz")


def test_a_read_only_cache_is_trained_from_and_not_written_to(
    world: TinyWorld, trained: Whole, cached: Whole, disk: Path, tmp_path: Path, start: Start
) -> None:
    shutil.copytree(world.cache, disk, dirs_exist_ok=True)
    disks.mount("-o", "remount,ro", disk).check_returncode()
    start("main_lpd", trained.flags(tmp_path / "out", "--cached_path", disk)).succeeds()
    assert same_training(tmp_path / "out", trained.folder)
    line = start("main_cache", cached.flags(disk / "new")).is_refused()
    assert line.startswith(f"error: --cached_path: {disk / 'new'}: "), line
