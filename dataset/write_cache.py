"""Writing a token cache: shards by many processes, joined into one file at the end.

A finished cache is a folder of

    cache-tokens.npy  (n, 2, N) uint16 (uint32 above 65,536 codes); axis 1: plain, mirrored
    cache-labels.npy  (n,) int32 class indices
    index.json        what the tokens are, and the checksums of the other two

with the images in `ImageList` order. `index.json` is written last: a folder without it is no cache.
Until then the folder holds the finished shards, and in `unfinished.json` what they are parts of: a
run of the same settings goes on from there.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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


@dataclass
class CacheInProgress:
    """The shards of a cache and which of them are done; the same on every process.

    Attributes:
        path: the cache folder.
        grid: what the tokens are.
        fingerprint, precision: of the tokenizer, and of the arithmetic it encodes with.
        shards: for every shard its batches, each an array of image indices.
        found: shards that an interrupted run of the same settings left whole.
        written: shards of this run, on this process.
    """

    path: Path
    grid: TokenGrid
    fingerprint: str
    precision: str
    shards: list[list[np.ndarray]]
    found: list[Shard]
    written: list[Shard] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        path: Path,
        images: ImageList,
        grid: TokenGrid,
        fingerprint: str,
        precision: str,
        batch_size: int,
        skip_bad: bool,
    ) -> CacheInProgress:
        """Plan a cache, or take up the unfinished one of these settings in the folder.

        Args:
            path: an existing folder.
            images: what the cache is made from.
            grid, fingerprint, precision: as above.
            batch_size: images encoded at a time.
            skip_bad: whether a shard may hold fewer images than were planned.

        Raises:
            UserError: on all processes, if the folder holds shards of other settings.
        """
        settings = {
            **asdict(grid),
            "fingerprint": fingerprint,
            "precision": precision,
            "batch_size": batch_size,
            "images": names_digest(images.paths, images.labels),
        }
        shards = _plan_or_take_up(path, settings, len(images))
        found = _whole_shards(path, grid, shards, skip_bad)
        return cls(path, grid, fingerprint, precision, shards, found)

    @property
    def to_do(self) -> list[int]:
        """Numbers of the shards that are not there yet."""
        done = {shard.number for shard in self.found}
        return [number for number in range(len(self.shards)) if number not in done]

    def write(self, number: int, tokens: np.ndarray, labels: np.ndarray) -> None:
        """Keep a shard: tokens (n, 2, N) and classes (n,) of its images, both integers."""
        with blame(f"--cached_path: {self.path}"):
            shard = write_shard(self.path, number, tokens, labels, self.grid.vocab_size)
        self.written.append(shard)

    def finish(self, classes: Sequence[str]) -> tuple[int, int]:
        """Make one cache of all processes' shards.

        Returns:
            Images in it, and how many of them this run encoded.

        Raises:
            UserError: on all processes, if there is no image or a file cannot be written.
        """
        new = list(chain.from_iterable(distributed.gather(self.written)))
        shards = sorted(self.found + new, key=lambda shard: shard.number)
        distributed.fail_together(lambda: self._write_index(classes, shards))
        return _count(shards), _count(new)

    def _write_index(self, classes: Sequence[str], shards: Sequence[Shard]) -> None:
        if not _count(shards):
            raise UserError("none of the images can be decoded, expected at least one")
        if distributed.is_main():
            with blame(f"--cached_path: {self.path}"):
                write_index(self.path, self.grid, self.fingerprint, classes, shards, self.precision)

    def give_up(self) -> None:
        """Clean up after a failure that all processes know of, so that none writes any more."""
        if distributed.is_main():
            drop_if_empty(self.path)


def _count(shards: Sequence[Shard]) -> int:
    return sum(shard.count for shard in shards)


def _plan_or_take_up(
    path: Path, settings: dict[str, Any], num_images: int
) -> list[list[np.ndarray]]:
    """The batches of every shard, as in the unfinished cache of these settings if there is one."""
    plan = partial(plan_shards, num_images, settings["batch_size"], distributed.world_size())

    def settle() -> int:
        if not distributed.is_main():
            return 0
        with blame(f"--cached_path: {path}"):
            return take_up(path, settings, len(plan()[0]))

    size = distributed.gather(distributed.fail_together(settle))[0]
    return plan(batches_per_shard=size)


def _whole_shards(
    path: Path, grid: TokenGrid, shards: list[list[np.ndarray]], skip_bad: bool
) -> list[Shard]:
    """Shards of an earlier run that are whole; the processes share the reading."""
    found = []
    for number in range(distributed.rank(), len(shards), distributed.world_size()):
        parts = read_shard(path, number, grid)
        # A run that skips bad images may have left some out.
        if parts is not None and (skip_bad or len(parts[1]) == sum(map(len, shards[number]))):
            found.append(Shard(number, len(parts[1])))
    return list(chain.from_iterable(distributed.gather(found)))


FORMAT = "lpd-token-cache"
VERSION = 2
INDEX_FILE = "index.json"
TOKENS_FILE = "cache-tokens.npy"
LABELS_FILE = "cache-labels.npy"
RECORD_FILE = "unfinished.json"
# What a killed run has to do again, at most, for each process.
MAX_SHARD_IMAGES = 1024
# What a run leaves whether or not it finishes.
_RECORDS = (LOG_FILE, RECORD_OF_RUNS, MARKER, lock_file(Path(), "cache").name)
# What a run writes before its index, temporary names included.
_UNFINISHED = re.compile(
    r"\.?(shard-\d{5,}\.np[yz]|cache-(tokens|labels)\.npy|unfinished\.json)(\.part)?"
    rf"|\.(index\.json|{re.escape(RECORD_OF_RUNS)})\.part"
)
_SHARD = re.compile(r"shard-\d{5,}\.npz")


@dataclass(frozen=True)
class Shard:
    """Tokens of consecutive images, on their way into the cache.

    Attributes:
        number: its place among the shards.
        count: images it holds.
    """

    number: int
    count: int


def token_dtype(vocab_size: int) -> np.dtype:
    """The smaller of uint16 and uint32 that holds every index below `vocab_size`."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def require_new_cache(path: str | Path, flag: str = "--cached_path") -> None:
    """Refuse a folder that holds anything but what an interrupted run left behind.

    Raises:
        UserError: a finished cache, or files that are not of a cache.
    """
    path = Path(path)
    if (path / INDEX_FILE).exists():
        raise UserError(
            f"{flag}: {path} already holds a finished token cache, expected a new folder"
        )
    for name in sorted(file.name for file in _entries(path)):
        if name not in _RECORDS and not _UNFINISHED.fullmatch(name):
            raise UserError(f"{flag}: {path} holds {name}, expected a new or empty folder")


def remove_unfinished(path: str | Path) -> None:
    """Delete the cache files that an interrupted or failed run left in a folder."""
    for file in _entries(Path(path)):
        if _UNFINISHED.fullmatch(file.name):
            file.unlink(missing_ok=True)


def holds_unfinished(path: Path) -> bool:
    """Whether an interrupted or failed run left cache files in a folder."""
    return any(_UNFINISHED.fullmatch(file.name) for file in _entries(path))


def _entries(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []


def take_up(path: str | Path, settings: Mapping[str, Any], batches_per_shard: int) -> int:
    """Begin a cache, or go on with the unfinished one in the folder.

    Args:
        path: the cache folder, of which `require_new_cache` approves.
        settings: all that decides what the shards hold, for a JSON file.
        batches_per_shard: of this run, if it is the first.

    Returns:
        Batches per shard to go on with.

    Raises:
        ValueError: the folder holds finished shards of other settings.
    """
    path = Path(path)
    try:
        record = read_json(path / RECORD_FILE)
        found_size = int(record.get("batches_per_shard"))
    except (OSError, ValueError, TypeError, AttributeError):
        record = None
    if record is None or not count_shards(path):
        remove_unfinished(path)
        write_json({**settings, "batches_per_shard": batches_per_shard}, path / RECORD_FILE)
        return batches_per_shard
    for name, expected in settings.items():
        if record.get(name) != expected:
            raise ValueError(
                f"holds an unfinished cache with {name} {record.get(name)}, found {expected}: "
                "expected the same flags and images, or another folder"
            )
    return max(found_size, 1)


def drop_if_empty(path: str | Path) -> None:
    """Clean up behind a run that failed before it finished a shard."""
    if not count_shards(Path(path)):
        remove_unfinished(path)


def count_shards(path: Path) -> int:
    """Finished shards in the folder of an unfinished cache."""
    return sum(_SHARD.fullmatch(file.name) is not None for file in _entries(path))


def names_digest(paths: Sequence[str | Path], labels: np.ndarray) -> str:
    """Which files a cache is made from, wherever they lie: sha256 (hex) of names and classes."""
    root = os.path.commonpath([Path(path).parent for path in (paths[0], paths[-1])])
    digest = hashlib.sha256(np.ascontiguousarray(labels, dtype=np.int64))
    for path in paths:
        digest.update(str(path)[len(root) :].encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()


def plan_shards(
    num_images: int, batch_size: int, processes: int, batches_per_shard: int | None = None
) -> list[list[np.ndarray]]:
    """Cut images 0, 1, ... into batches and those into shards that divide well over processes.

    The batches do not depend on the number of processes, so neither do the tokens, even where a
    GPU's kernels round differently for other batch sizes.

    Args:
        num_images: images in the data.
        batch_size: images encoded at a time.
        processes: how many encode.
        batches_per_shard: instead of a division over processes; of a run that is taken up.

    Returns:
        For every shard its batches, each an array of consecutive image indices; at most
        `MAX_SHARD_IMAGES` images per shard.
    """
    batch_size = min(batch_size, MAX_SHARD_IMAGES)
    starts = range(0, num_images, batch_size)
    batches = [np.arange(start, min(start + batch_size, num_images)) for start in starts]
    rounds = math.ceil(len(batches) / (MAX_SHARD_IMAGES // batch_size * processes))
    size = batches_per_shard or math.ceil(len(batches) / (rounds * processes))
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def write_shard(
    path: str | Path, number: int, tokens: np.ndarray, labels: np.ndarray, vocab_size: int
) -> Shard:
    """Write one shard, atomically; an .npz, whose checksums are compared when it is read.

    Args:
        path: the cache folder.
        number: the shard's place in the cache.
        tokens: (n, 2, N) integers, plain and mirrored.
        labels: (n,) integers, classes of the images.
        vocab_size: decides the tokens' type on disk.

    Raises:
        ValueError: an index is not below `vocab_size`, or tokens and labels do not agree.
        OSError: the file cannot be written.
    """
    if len(tokens) != len(labels):
        raise ValueError(f"found tokens of {len(tokens)} images and {len(labels)} labels")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise ValueError(
            f"found indices {tokens.min()} to {tokens.max()}, expected [0, {vocab_size})"
        )
    with replacing(_shard_file(path, number)) as temporary, temporary.open("wb") as stream:
        tokens = tokens.astype(token_dtype(vocab_size))
        np.savez(stream, allow_pickle=False, tokens=tokens, labels=labels.astype(np.int32))
    return Shard(number, len(tokens))


def read_shard(
    path: str | Path, number: int, grid: TokenGrid
) -> tuple[np.ndarray, np.ndarray] | None:
    """Tokens (n, 2, N) and labels (n,) of a finished shard; None if there is none or it is torn."""
    file = _shard_file(path, number)
    try:
        # Shards are not compressed: no array in one is larger than the file.
        parts = read_npz(file, ("tokens", "labels"), max_bytes=file.stat().st_size)
    except (OSError, ValueError, KeyError):
        return None
    tokens, labels = parts["tokens"], parts["labels"]
    shape, dtype = (labels.size, 2, grid.num_tokens), token_dtype(grid.vocab_size)
    whole = tokens.shape == shape and tokens.dtype == dtype
    return (tokens, labels) if whole and labels.ndim == 1 and labels.dtype == np.int32 else None


def write_index(
    path: str | Path,
    grid: TokenGrid,
    fingerprint: str,
    classes: Sequence[str],
    shards: Sequence[Shard],
    precision: str = "float32",
) -> None:
    """Join the shards, then write the index: the cache is finished.

    Args:
        path: the cache folder, which holds the shards; they go once the cache is finished.
        grid: what the tokens are.
        fingerprint: of the tokenizer that made them.
        classes: class names.
        shards: in order.
        precision: of the arithmetic that made them, for the record.

    Raises:
        ValueError: a shard is not as it was written.
        OSError: a file cannot be written.
    """
    path = Path(path)
    _join_shards(path, shards, grid)
    index = {
        "format": FORMAT,
        "version": VERSION,
        **asdict(grid),
        "num_tokens": grid.num_tokens,
        "num_images": sum(shard.count for shard in shards),
        "fingerprint": fingerprint,
        "precision": precision,
        "crc32": {name: checksum(path / name) for name in (TOKENS_FILE, LABELS_FILE)},
        "classes": list(classes),
    }
    write_json(index, path / INDEX_FILE)
    for shard in shards:
        _shard_file(path, shard.number).unlink()
    (path / RECORD_FILE).unlink(missing_ok=True)


def _join_shards(path: Path, shards: Sequence[Shard], grid: TokenGrid) -> None:
    """One array file instead of many: one memory map, read by one gather."""
    header = {
        "descr": np.lib.format.dtype_to_descr(token_dtype(grid.vocab_size)),
        "fortran_order": False,
        "shape": (sum(shard.count for shard in shards), 2, grid.num_tokens),
    }
    classes = [np.empty(0, dtype=np.int32)]
    with replacing(path / TOKENS_FILE) as temporary, temporary.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for shard in shards:
            parts = read_shard(path, shard.number, grid)
            if parts is None or len(parts[1]) != shard.count:
                name = _shard_file(path, shard.number).name
                raise ValueError(f"{name} is damaged, expected the {shard.count} images written")
            tokens, labels = parts
            stream.write(np.ascontiguousarray(tokens).data)
            classes.append(labels)
    with replacing(path / LABELS_FILE) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.concatenate(classes), allow_pickle=False)


def _shard_file(path: str | Path, number: int) -> Path:
    return Path(path) / f"shard-{number:05d}.npz"


def checksum(file: Path) -> int:
    """`zlib.crc32` of a whole file."""
    found = 0
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            found = zlib.crc32(block, found)
    return found
