"""Disks that can be filled, or made read-only."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """Mount a small disk as `folder`; skips the test where that is not allowed."""
    folder.mkdir()
    mounted = mount("-t", "tmpfs", "-o", "size=512m", "tmpfs", folder)
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def mount(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


def fill(folder: Path, room: int) -> Path:
    """Fill the disk of `folder` up to `room` bytes; returns the file to delete for more."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with pytest.raises(OSError) as full:
            while True:
                file.write(bytes(2**20))
        assert full.value.errno == errno.ENOSPC
        file.truncate(file.seek(0, os.SEEK_END) - room)
    return ballast
