"""Disks that are full or cannot be written to."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.faults.conftest import SHARD, SHARDS, Fault, Start, Whole, same_cache
from tests.faults.disks import disk, fill, read_only_copy
from tests.integration.test_resume import same_training
from tests.integration.tiny_world import TinyWorld
from training.checkpoint import LAST, PREVIOUS

pytestmark = pytest.mark.slow

# What a disk gives out at a time.
PAGE = 4096


def contents(folder: Path, pattern: str) -> dict[str, str]:
    """Checksums of the files in a folder."""
    files = sorted(folder.glob(pattern))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("room", ["half a file", "nothing"])
def test_checkpoint(trained: Whole, tmp_path: Path, start: Start, fault: Fault, room: str) -> None:
    """Disk full while a checkpoint is saved."""
    with disk(tmp_path / "disk") as output:
        flags = trained.flags(output, "--save_steps", 4)
        start("main_lpd", [*flags, "--epochs", 1]).succeeds()
        before = contents(output, "*.pth")
        assert before.keys() >= {LAST, PREVIOUS}
        left = (output / LAST).stat().st_size // 2 if room == "half a file" else 0
        ballast = fill(output, left)
        fault.tries += 1
        line = start("main_lpd", flags).is_refused()
        assert line.endswith("No space left on device"), line
        assert str(output) in line
        assert contents(output, "*.pth") == before
        assert not list(output.glob(".*"))
        ballast.unlink()
        start("main_lpd", flags).succeeds()
        assert same_training(output, trained.folder)
    fault.ended = "one line, earlier files intact; went on: same bits"


def test_cache_shard(cached: Whole, tmp_path: Path, start: Start, fault: Fault) -> None:
    """Disk full while a cache shard is written."""
    with disk(tmp_path / "disk") as folder:
        output = folder / "cache"
        ballast = fill(folder, SHARDS // 2 * PAGE)
        fault.tries += 1
        line = start("main_cache", cached.flags(output), shard_images=SHARD).is_refused()
        assert line.startswith(f"error: --cached_path: {output}") and "No space left" in line, line
        assert not list(output.glob(".*"))
        before = contents(output, "*.npz")
        assert 0 < len(before) < SHARDS
        ballast.unlink()
        said = start("main_cache", cached.flags(output), shard_images=SHARD).succeeds()
        assert f"{len(before)} of {SHARDS} shards are there already" in said
        assert same_cache(output, cached.folder)
    fault.ended = f"one line, {len(before)} shards kept; went on: same bytes"


def test_images(world: TinyWorld, tmp_path: Path, start: Start, fault: Fault) -> None:
    """Disk full while images are written."""
    whole = tmp_path / "whole"
    more = ("--log_dir", tmp_path / "log", "--save_npz")
    start("main_lpd", [*world.eval_flags(whole), *more]).succeeds()
    with disk(tmp_path / "disk") as folder:
        output = folder / "samples"
        ballast = fill(folder, 5 * PAGE)
        fault.tries += 1
        line = start("main_lpd", [*world.eval_flags(output), *more]).is_refused()
        assert str(output) in line and line.endswith("No space left on device"), line
        before = contents(output / "images", "*")
        assert 0 < len(before) < len(contents(whole / "images", "*"))
        ballast.unlink()
        said = start("main_lpd", [*world.eval_flags(output), *more]).succeeds()
        assert f"{len(before)} of 9 images are there already" in said
        assert contents(output / "images", "*") == contents(whole / "images", "*")
        assert contents(output, "*.npz") == contents(whole, "*.npz")
    fault.ended = f"one line, {len(before)} images kept; went on: same images"


def test_read_only_cache(
    world: TinyWorld, trained: Whole, cached: Whole, tmp_path: Path, start: Start, fault: Fault
) -> None:
    """A read-only cache."""
    with read_only_copy(world.cache, tmp_path / "disk") as cache:
        output = tmp_path / "trained"
        fault.tries = 2
        start("main_lpd", trained.flags(output, "--cached_path", cache)).succeeds()
        assert same_training(output, trained.folder)
        line = start("main_cache", cached.flags(cache / "new")).is_refused()
        assert line.startswith(f"error: --cached_path: {cache / 'new'}: "), line
    fault.ended = "trained from: same bits; written to: one line"
