"""Writing a token cache: shards by many processes, joined into one file at the end.

A finished cache is a folder of

    cache-tokens.npy  (n, 2, N) uint16 (uint32 above 65,536 codes); axis 1: plain, mirrored
    cache-labels.npy  (n,) int32 class indices
    index.json        what the tokens are, and the checksums of the other two

with the images in `ImageList` order. `index.json` is written last: a folder without it is no cache.
Until then it holds the finished shards, and in `unfinished.json` of what: the same run goes on.
"""

import hashlib
import math
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dataset.image_folder import ImageList
from util import distributed
from util.arrays import read_npz
from util.errors import UserError, blame
from util.files import read_json, replacing, write_json
from util.folder_lock import lock_file
from util.geometry import TokenGrid
from util.logs import LOG_FILE
from util.run_record import RECORD_FILE as RECORD_OF_RUNS
from util.signals import MARKER

FORMAT = "lpd-token-cache"
VERSION = 2
INDEX_FILE = "index.json"
TOKENS_FILE = "cache-tokens.npy"
LABELS_FILE = "cache-labels.npy"
RECORD_FILE = "unfinished.json"
MAX_SHARD_IMAGES = 1024  # what a killed run has to do again, at most, for each process
# What a run leaves whether or not it finishes.
_RECORDS = (LOG_FILE, RECORD_OF_RUNS, MARKER, lock_file(Path(), "cache").name)
# What a run writes before its index, temporary names included.
_UNFINISHED = re.compile(
    r"\.?(shard-\d{5,}\.np[yz]|cache-(tokens|labels)\.npy|unfinished\.json)(\.part)?"
    rf"|\.(index\.json|{re.escape(RECORD_OF_RUNS)})\.part"
)


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smaller of uint16 and uint32 that holds every index below `vocab_size`."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def require_new_cache(path: Path) -> None:
    """Raise a `UserError` if a folder holds more than what an interrupted run leaves behind."""
    if (path / INDEX_FILE).exists():
        raise UserError(
            f"--cached_path: {path} already holds a finished token cache, expected a new folder"
        )
    for name in sorted(file.name for file in path.glob("*")):
        if name not in _RECORDS and not _UNFINISHED.fullmatch(name):
            raise UserError(f"--cached_path: {path} holds {name}, expected a new or empty folder")


def unfinished_files(path: Path) -> list[Path]:
    """List the cache files that an interrupted run left in a folder."""
    return [file for file in path.glob("*") if _UNFINISHED.fullmatch(file.name)]


def remove_unfinished(path: Path) -> None:
    """Delete these files."""
    for file in unfinished_files(path):
        file.unlink(missing_ok=True)


def count_shards(path: Path) -> int:
    """Count the finished shards of an unfinished cache."""
    return len(list(path.glob("shard-*.npz")))


def write_shard(
    path: Path, number: int, tokens: np.ndarray, labels: np.ndarray, vocab_size: int
) -> int:
    """Write shard `number`, atomically, and return its number of images.

    It is an .npz, whose checksums are compared when it is read. Tokens are (n, 2, N) integers below
    `vocab_size`, plain and mirrored, labels (n,) integers.
    """
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise ValueError(
            f"found indices {tokens.min()} to {tokens.max()}, expected [0, {vocab_size})"
        )
    with replacing(_shard_file(path, number)) as temporary, temporary.open("wb") as stream:
        tokens = tokens.astype(token_dtype(vocab_size))
        np.savez(stream, allow_pickle=False, tokens=tokens, labels=labels.astype(np.int32))
    return len(tokens)


def _read_shard(path: Path, number: int, grid: TokenGrid) -> tuple[np.ndarray, np.ndarray] | None:
    """Read tokens (n, 2, N) and labels (n,) of a shard; None if there is none or it is torn."""
    file = _shard_file(path, number)
    try:
        # Shards are not compressed: no array in one is larger than the file.
        parts = read_npz(file, ("tokens", "labels"), max_bytes=file.stat().st_size)
    except (OSError, ValueError, KeyError):
        return None
    tokens, labels = parts["tokens"], parts["labels"]
    found = (tokens.dtype, labels.dtype, tokens.shape, labels.shape)
    shapes = ((labels.size, 2, grid.num_tokens), (labels.size,))
    return (tokens, labels) if found == (token_dtype(grid.vocab_size), np.int32, *shapes) else None


def _shard_file(path: Path, number: int) -> Path:
    return path / f"shard-{number:05d}.npz"


def write_index(
    path: Path,
    grid: TokenGrid,
    fingerprint: str,
    classes: Sequence[str],
    counts: Sequence[int],
    precision: str = "float32",
) -> None:
    """Join shards 0, 1, ... of so many images and write the index; ValueError of a damaged one."""
    shape, dtype = (sum(counts), 2, grid.num_tokens), token_dtype(grid.vocab_size)
    labels = [np.empty(0, dtype=np.int32)]
    with replacing(path / TOKENS_FILE) as temporary, temporary.open("wb") as stream:
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for number, count in enumerate(counts):
            parts = _read_shard(path, number, grid)
            if parts is None or len(parts[1]) != count:
                name = _shard_file(path, number).name
                raise ValueError(f"{name} is damaged, expected the {count} images written")
            stream.write(parts[0].tobytes())
            labels.append(parts[1])
    with replacing(path / LABELS_FILE) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.concatenate(labels), allow_pickle=False)
    index = {
        "format": FORMAT,
        "version": VERSION,
        **asdict(grid),
        "num_tokens": grid.num_tokens,
        "num_images": sum(counts),
        "fingerprint": fingerprint,
        "precision": precision,
        "crc32": {name: checksum(path / name) for name in (TOKENS_FILE, LABELS_FILE)},
        "classes": list(classes),
    }
    write_json(index, path / INDEX_FILE)
    for number in range(len(counts)):
        _shard_file(path, number).unlink()
    (path / RECORD_FILE).unlink(missing_ok=True)


def checksum(file: Path) -> int:
    """Return `zlib.crc32` of a whole file."""
    crc = 0
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            crc = zlib.crc32(block, crc)
    return crc


def plan_shards(
    num_images: int, batch_size: int, processes: int, batches_per_shard: int | None = None
) -> list[list[np.ndarray]]:
    """Cut images into batches of indices, and those into shards of `MAX_SHARD_IMAGES` at most."""
    # Batches do not depend on the number of processes: a GPU may round differently in others.
    batch_size = min(batch_size, MAX_SHARD_IMAGES)
    starts = range(0, num_images, batch_size)
    batches = [np.arange(start, min(start + batch_size, num_images)) for start in starts]
    rounds = math.ceil(len(batches) / (MAX_SHARD_IMAGES // batch_size * processes))
    size = batches_per_shard or math.ceil(len(batches) / (rounds * processes))
    return [batches[start : start + size] for start in range(0, len(batches), size)]


class CacheInProgress:
    """The shards of a cache and which of them are done; the same on every process.

    `shards` are lists of batches of image indices, `earlier` the numbers of those that a run of the
    same settings left whole, with their images, `to_do` the others' numbers. An unfinished cache of
    other settings is a `UserError`. With `skip_bad` a shard may hold fewer images than planned.
    """

    def __init__(
        self,
        path: Path,
        images: ImageList,
        grid: TokenGrid,
        fingerprint: str,
        precision: str,
        batch_size: int,
        skip_bad: bool,
    ) -> None:
        self._path, self._grid, self._written = path, grid, []
        settings = {**asdict(grid), "fingerprint": fingerprint, "precision": precision}
        settings |= {"batch_size": batch_size, "images": _names_digest(images)}
        about = (path, grid, fingerprint, images.classes)
        self._write_index = partial(write_index, *about, precision=precision)
        plan = partial(plan_shards, len(images), batch_size, distributed.world_size())

        def settle() -> int:
            if not distributed.is_main():
                return 0
            with blame(f"--cached_path: {path}"):
                return _take_up(path, settings, len(plan()[0]))

        self.shards = plan(distributed.gather(distributed.fail_together(settle))[0])
        whole = []  # the processes share the reading
        for number in range(distributed.rank(), len(self.shards), distributed.world_size()):
            parts = _read_shard(path, number, grid)
            planned = sum(map(len, self.shards[number]))
            if parts is not None and (skip_bad or len(parts[1]) == planned):
                whole.append((number, len(parts[1])))
        self.earlier = dict(chain.from_iterable(distributed.gather(whole)))
        self.to_do = [number for number in range(len(self.shards)) if number not in self.earlier]

    def write(self, number: int, tokens: np.ndarray, labels: np.ndarray) -> None:
        """Write a shard: tokens (n, 2, N) and classes (n,) of its images, both integers."""
        with blame(f"--cached_path: {self._path}"):
            count = write_shard(self._path, number, tokens, labels, self._grid.vocab_size)
        self._written.append((number, count))

    def finish(self) -> tuple[int, int]:
        """Make one cache of all shards; return its images, and how many this run encoded."""
        new = dict(chain.from_iterable(distributed.gather(self._written)))
        counts = [count for _, count in sorted((self.earlier | new).items())]

        def write() -> None:
            if not sum(counts):
                raise UserError("none of the images can be decoded, expected at least one")
            if distributed.is_main():
                with blame(f"--cached_path: {self._path}"):
                    self._write_index(counts)

        distributed.fail_together(write)
        return sum(counts), sum(new.values())

    def give_up(self) -> None:
        """Clean up, if no shard was finished, after a failure that all processes know of."""
        if distributed.is_main() and not count_shards(self._path):
            remove_unfinished(self._path)


def _take_up(path: Path, settings: dict[str, Any], batches_per_shard: int) -> int:
    """Begin a cache, or go on with the unfinished one in the folder; return batches per shard."""
    try:
        record = read_json(path / RECORD_FILE)
        recorded_size = int(record["batches_per_shard"])
    except (OSError, ValueError, TypeError, LookupError):
        record = None
    if record is None or not count_shards(path):
        remove_unfinished(path)
        write_json({**settings, "batches_per_shard": batches_per_shard}, path / RECORD_FILE)
        return batches_per_shard
    for name, value in settings.items():
        if record.get(name) != value:
            raise ValueError(
                f"holds an unfinished cache with {name} {record.get(name)}, found {value}: "
                "expected the same flags and images, or another folder"
            )
    return max(recorded_size, 1)


def _names_digest(images: ImageList) -> str:
    """Hash names and classes (sha256); the folder that holds them may move."""
    root = os.path.commonpath([Path(path).parent for path in (images.paths[0], images.paths[-1])])
    digest = hashlib.sha256(np.ascontiguousarray(images.labels, dtype=np.int64))
    for path in images.paths:
        digest.update(str(path)[len(root) :].encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()
