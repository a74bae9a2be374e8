"""Disks that can be filled, folders that cannot be written to."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """Mount a small disk as `folder`; skips the test where that is not allowed."""
    folder.mkdir()
    mounted = _mount("-t", "tmpfs", "-o", "size=512m", "tmpfs", folder)
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def read_only_copy(source: Path, folder: Path) -> Iterator[Path]:
    """A copy of a folder that nobody can write to, root included."""
    if os.geteuid() == 0:
        with disk(folder):
            shutil.copytree(source, folder, dirs_exist_ok=True)
            _mount("-o", "remount,ro", folder).check_returncode()
            yield folder
    else:
        shutil.copytree(source, folder)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


def _mount(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


def fill(folder: Path, room: int) -> Path:
    """Fill the disk of `folder` up to `room` bytes; returns the file to delete for more."""
    ballast = folder / "ballast"
    block = bytes(2**20)
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(block)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        size = file.seek(0, os.SEEK_END)
        file.truncate(size - room)
    return ballast
