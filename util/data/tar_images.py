"""Image folders inside an uncompressed tar: listed once, then read at their places."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from util.logs import progress

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class TarMembers:
    """Where members of a tar lie in it.

    Args:
        path: the tar.
        offsets: (n,) of the members' contents, bytes.
        sizes: (n,) of the contents, bytes.
    """

    def __init__(self, path: Path, offsets: np.ndarray, sizes: np.ndarray) -> None:
        self.path = path
        self._offsets = offsets
        self._sizes = sizes
        self._file: int | None = None

    def read(self, index: int) -> bytes:
        """The content of one member.

        Raises:
            OSError: the tar has gone or cannot be read.
        """
        if self._file is None:
            # The first use opens it: in every worker process, not in the one that starts them.
            self._file = os.open(self.path, os.O_RDONLY)
        return os.pread(self._file, int(self._sizes[index]), int(self._offsets[index]))

    def select(self, indices: np.ndarray) -> TarMembers:
        """Those members, in that order."""
        return TarMembers(self.path, self._offsets[indices], self._sizes[indices])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)


def list_tar(path: Path, suffixes: tuple[str, ...]) -> tuple[list[str], set[str], TarMembers]:
    """List a tar of files in folders; hidden ones are passed over.

    Args:
        path: the tar.
        suffixes: file name endings that count, in lower case.

    Returns:
        The names of its files with one of `suffixes`, without a leading `./`; the names of all
        folders that it holds or implies; and where the files lie, in the order of the names. Of
        files with the same name the last one counts, as it does in unpacking.

    Raises:
        ValueError: compressed or no tar, cut short, or a wanted file is a link or sparse.
        OSError: it cannot be read.
    """
    places: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    end = path.stat().st_size
    for member in progress(_members(path), desc=f"list {path.name}", unit="file"):
        name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if member.isdir():
            folders.add(name)
        elif name.lower().endswith(suffixes):
            if member.issparse() or not member.isreg():
                kind = "a sparse file" if member.issparse() else "a link or special file"
                raise ValueError(f"{name} is {kind}, expected plain files only")
            if member.offset_data + member.size > end:
                raise ValueError(f"is cut short inside {name}")
            places[name] = (member.offset_data, member.size)
            folders.add(name.rpartition("/")[0])
    for folder in list(folders):
        while folder := folder.rpartition("/")[0]:
            folders.add(folder)
    table = np.array(list(places.values()), dtype=np.int64).reshape(-1, 2)
    return list(places), folders - {""}, TarMembers(path, table[:, 0].copy(), table[:, 1].copy())


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Headers of an uncompressed tar, one by one."""
    with path.open("rb") as file:
        start = file.read(6)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(f"is compressed ({name}), expected an uncompressed tar")
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                yield member
                tar.members = []  # it would keep a kilobyte for each of a million
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(f"is no readable tar ({error})") from error
    # tarfile takes whatever is no header for the end of the archive.
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(tarfile.BLOCKSIZE)
        if len(rest) < tarfile.BLOCKSIZE or any(rest):
            raise ValueError(f"is cut short or damaged at byte {end}")
        while rest := file.read(2**20):
            if any(rest):
                raise ValueError("goes on after its end, expected one tar, not several in a row")
