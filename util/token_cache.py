"""Token caches: a data set as code indices, written once, read by memory-mapping.

A cache is a folder of

    shard-00000.npy ...  (n_i, 2, N) uint16 (uint32 above 65,536 codes); axis 1: plain, mirrored
    shard-labels.npy     (n,) int32 class indices
    index.json           what the tokens are, and the size and checksum of every file

with the images in `ImageList` order. `index.json` is written last: a folder without it is no cache.
The published layout, one `<class>/<image name>.npz` per image, is read behind the same interface.
"""

from __future__ import annotations

import json
import logging
import math
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from util.errors import UserError, blame
from util.files import replacing, write_json
from util.geometry import TokenGrid, grid_side
from util.image_folder import list_classes

logger = logging.getLogger(__name__)

FORMAT = "lpd-token-cache"
VERSION = 1
MAX_SHARD_IMAGES = 4096
# A mapped shard holds a file descriptor, and 1024 of those is a common limit.
MAX_MAPPED_SHARDS = 512
INDEX_FILE = "index.json"
LABELS_FILE = "shard-labels.npy"
# What a run writes before its index, temporary names included.
_UNFINISHED = re.compile(r"\.?shard-(\d{5,}|labels)\.npy(\.part)?|\.index\.json\.part")
# What np.load raises on damaged or foreign .npz files.
_DAMAGED = (OSError, ValueError, LookupError, EOFError, TypeError, AttributeError)
_DAMAGED += (zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class ArrayFile:
    """One .npy file of a cache.

    Attributes:
        file: its name inside the cache folder.
        count: images it holds, the length of the array's first axis.
        crc32: `zlib.crc32` of the whole file.
    """

    file: str
    count: int
    crc32: int


class TokenCache(ABC):
    """The tokens of a data set, both ways round.

    Attributes:
        path: the folder.
        classes: class names; a label is an index into them.
        labels: (n,) int64.
        num_tokens: N, tokens per image.
        grid: image size, stride and vocabulary. The published layout does not record them: there
            `grid` is None until `check_cache` supplies it.
        fingerprint: of the tokenizer, None where the cache does not record it.
    """

    path: Path
    classes: tuple[str, ...]
    labels: np.ndarray
    num_tokens: int
    grid: TokenGrid | None
    fingerprint: str | None

    @property
    def num_images(self) -> int:
        """Images in the cache, n."""
        return len(self.labels)

    @property
    def vocab_size(self) -> int | None:
        """Number of codes, None while `grid` is."""
        return self.grid.vocab_size if self.grid else None

    @property
    def image_size(self) -> int | None:
        """Side of the images, pixels, None while `grid` is."""
        return self.grid.image_size if self.grid else None

    @abstractmethod
    def read(self, indices: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        """Fetch tokens.

        Args:
            indices: (B,) integers in [0, num_images).
            flipped: (B,) bool, True for the mirrored image.

        Returns:
            (B, N) int64, raster order.

        Raises:
            IndexError: no such image.
            UserError: a file has gone or is damaged.
        """


def shard_dtype(vocab_size: int) -> np.dtype:
    """The smaller of uint16 and uint32 that holds every index below `vocab_size`."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


# ---- writing


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
    foreign = sorted(file.name for file in _entries(path) if not _UNFINISHED.fullmatch(file.name))
    if foreign:
        raise UserError(f"{flag}: {path} holds {foreign[0]}, expected a new or empty folder")


def remove_unfinished(path: str | Path) -> None:
    """Delete the cache files that an interrupted or failed run left in a folder."""
    for file in _entries(Path(path)):
        if _UNFINISHED.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _entries(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []


def plan_shards(num_images: int, batch_size: int, processes: int) -> list[list[np.ndarray]]:
    """Cut images 0, 1, ... into batches and those into shards that divide well over processes.

    The batches do not depend on the number of processes, so neither do the tokens, even where a
    GPU's kernels round differently for other batch sizes.

    Returns:
        For every shard its batches, each an array of consecutive image indices; at most
        `MAX_SHARD_IMAGES` images per shard.
    """
    batch_size = min(batch_size, MAX_SHARD_IMAGES)
    starts = range(0, num_images, batch_size)
    batches = [np.arange(start, min(start + batch_size, num_images)) for start in starts]
    rounds = math.ceil(len(batches) / (MAX_SHARD_IMAGES // batch_size * processes))
    size = math.ceil(len(batches) / (rounds * processes))
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def write_shard(path: str | Path, number: int, tokens: np.ndarray, vocab_size: int) -> ArrayFile:
    """Write one shard, atomically.

    Args:
        path: the cache folder.
        number: the shard's place in the cache.
        tokens: (n, 2, N) integers, plain and mirrored.
        vocab_size: decides the type on disk.

    Raises:
        ValueError: an index is not below `vocab_size`.
        OSError: the file cannot be written.
    """
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise ValueError(
            f"found indices {tokens.min()} to {tokens.max()}, expected [0, {vocab_size})"
        )
    file = Path(path) / f"shard-{number:05d}.npy"
    return _write_array(file, tokens.astype(shard_dtype(vocab_size)))


def write_index(
    path: str | Path,
    grid: TokenGrid,
    fingerprint: str,
    classes: Sequence[str],
    labels: np.ndarray,
    shards: Sequence[ArrayFile],
) -> None:
    """Write the labels and then the index: the cache is finished.

    Args:
        path: the cache folder, which holds the shards.
        grid: what the tokens are.
        fingerprint: of the tokenizer that made them.
        classes: class names.
        labels: (n,) class index of every image, in the order of the shards' concatenation.
        shards: in order.

    Raises:
        ValueError: labels and shards do not agree.
        OSError: a file cannot be written.
    """
    total = sum(shard.count for shard in shards)
    if total != len(labels):
        raise ValueError(f"found {total} images in shards and {len(labels)} labels")
    label_file = _write_array(Path(path) / LABELS_FILE, np.asarray(labels, dtype=np.int32))
    index = {
        "format": FORMAT,
        "version": VERSION,
        **asdict(grid),
        "num_tokens": grid.num_tokens,
        "num_images": total,
        "fingerprint": fingerprint,
        "classes": list(classes),
        "labels": asdict(label_file),
        "shards": [asdict(shard) for shard in shards],
    }
    write_json(index, Path(path) / INDEX_FILE)


def _write_array(file: Path, array: np.ndarray) -> ArrayFile:
    with replacing(file) as temporary:
        with temporary.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
        return ArrayFile(file.name, len(array), _crc32(temporary))


def _crc32(file: Path) -> int:
    checksum = 0
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            checksum = zlib.crc32(block, checksum)
    return checksum


# ---- reading


def open_cache(path: str | Path, flag: str = "--cached_path") -> TokenCache:
    """Open a token cache, this project's or the published layout.

    File sizes and types are checked against the index, checksums are not (`ShardedCache.verify`).

    Raises:
        UserError: no cache, another version, or a file of it is missing or damaged.
    """
    if not str(path):
        raise UserError(f"{flag}: found nothing, expected the folder of a token cache")
    path = Path(path)
    if not path.is_dir():
        found = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{flag}: {path} {found}, expected the folder of a token cache")
    if (path / INDEX_FILE).exists():
        return ShardedCache(path, flag)
    if any(path.glob("shard-*.npy")):
        raise UserError(
            f"{flag}: {path} holds shards but no {INDEX_FILE}, expected a finished token cache"
        )
    return PublishedCache(path, flag)


class ShardedCache(TokenCache):
    """This project's own format; see the head of this file."""

    def __init__(self, path: Path, flag: str) -> None:
        self.path = path
        self._flag = flag
        index = _read_index(path / INDEX_FILE, flag)
        self._label_file = ArrayFile(**index["labels"])
        self._shards = [ArrayFile(**shard) for shard in index["shards"]]
        with blame(f"{flag}: {path / INDEX_FILE}"):
            self.grid = TokenGrid(index["image_size"], index["stride"], index["vocab_size"])
        self.num_tokens = self.grid.num_tokens
        self.fingerprint = index["fingerprint"]
        self.classes = tuple(index["classes"])
        # Image i lies in the last shard whose start is not above i.
        self._starts = np.cumsum([0, *(shard.count for shard in self._shards)])
        self._mapped: dict[int, np.ndarray] = {}
        for shard in self._shards:
            self._check_header(shard, (2, self.num_tokens), shard_dtype(self.grid.vocab_size))
        self._check_header(self._label_file, (), np.dtype(np.int32))
        self.labels = np.load(path / self._label_file.file, allow_pickle=False).astype(np.int64)
        self._check_totals(index["num_images"])

    def read(self, indices: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        indices, flipped = np.asarray(indices), np.asarray(flipped).astype(np.intp)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.num_images:
            raise IndexError(f"found {indices}, expected indices in [0, {self.num_images})")
        tokens = np.empty((len(indices), self.num_tokens), dtype=np.int64)
        shard_of = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(shard_of):
            here = shard_of == number
            rows = indices[here] - self._starts[number]
            tokens[here] = self._shard(int(number))[rows, flipped[here]]
        if tokens.size and tokens.max() >= self.vocab_size:
            self.verify()  # names the damaged file
        return tokens

    def verify(self) -> None:
        """Read everything once and compare checksums.

        Raises:
            UserError: the first file that differs from what was written.
        """
        for part in (self._label_file, *self._shards):
            file = self.path / part.file
            with blame(self._flag):
                found = _crc32(file)
            if found != part.crc32:
                raise UserError(
                    f"{self._flag}: {file} is damaged: checksum {found:08x}, "
                    f"expected {part.crc32:08x}"
                )

    def _shard(self, number: int) -> np.ndarray:
        """Shard `number`, (n_i, 2, N), memory-mapped; the longest mapped make room."""
        if number not in self._mapped:
            if len(self._mapped) >= MAX_MAPPED_SHARDS:
                self._mapped.pop(next(iter(self._mapped)))
            file = self.path / self._shards[number].file
            with blame(f"{self._flag}: {file}"):
                self._mapped[number] = np.load(file, mmap_mode="r", allow_pickle=False)
        return self._mapped[number]

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry the tokens along.
        return {**self.__dict__, "_mapped": {}}

    def _check_header(self, part: ArrayFile, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Raise a UserError unless a file's header and size are what the index says."""
        file, expected = self.path / part.file, (part.count, *shape)
        with blame(f"{self._flag}: {file}"):
            if not file.is_file():
                raise ValueError(f"is missing, expected {dtype} {expected}")
            with file.open("rb") as stream:
                np.lib.format.read_magic(stream)
                found, _, found_dtype = np.lib.format.read_array_header_1_0(stream)
                header = stream.tell()
            size, expected_size = file.stat().st_size, header + math.prod(expected) * dtype.itemsize
            if (found, found_dtype) != (expected, dtype):
                raise ValueError(f"holds {found_dtype} {found}, expected {dtype} {expected}")
            if size != expected_size:
                raise ValueError(f"is damaged: {size} bytes, expected {expected_size}")

    def _check_totals(self, num_images: int) -> None:
        """Raise a UserError unless index, shards and labels agree on number and classes."""
        lengths = [num_images, len(self.labels), int(self._starts[-1])]
        if len(set(lengths)) > 1 or num_images < 1:
            raise UserError(
                f"{self._flag}: {self.path / INDEX_FILE} is damaged: index, labels and shards have "
                f"{lengths} images, expected the same number"
            )
        if not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise UserError(
                f"{self._flag}: {self.path / self._label_file.file} is damaged: labels from "
                f"{self.labels.min()} to {self.labels.max()}, expected [0, {len(self.classes)})"
            )


def _read_index(file: Path, flag: str) -> dict[str, Any]:
    """The parsed index, with every entry of the type this version writes."""
    with blame(f"{flag}: {file}"):
        try:
            index = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"is damaged: {error}, expected JSON") from error
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise ValueError("is not the index of a token cache")
        if index.get("version") != VERSION:
            raise ValueError(f"has version {index.get('version')}, expected {VERSION}")
        integers = ("image_size", "stride", "vocab_size", "num_tokens", "num_images")
        types = dict.fromkeys(integers, int) | {
            "fingerprint": str,
            "classes": list,
            "labels": dict,
            "shards": list,
        }
        for name, expected in types.items():
            if not isinstance(index.get(name), expected):
                raise ValueError(f"is damaged: no usable entry {name!r}")
        for part in (index["labels"], *index["shards"]):
            if not _is_array_file(part):
                raise ValueError(f"is damaged: found file entry {part!r}")
        return index


def _is_array_file(part: Any) -> bool:
    """Whether a parsed JSON value is an `ArrayFile` inside the cache folder."""
    if not isinstance(part, dict) or part.keys() != {"file", "count", "crc32"}:
        return False
    numbers = isinstance(part["count"], int) and isinstance(part["crc32"], int)
    name = part["file"]
    return numbers and part["count"] >= 0 and isinstance(name, str) and Path(name).name == name


class PublishedCache(TokenCache):
    """The published layout: `<class>/<image name>.npz` with `indices` and `indices_flip`.

    Every file is opened when it is read, so this is the slow way.
    """

    fingerprint = None

    def __init__(self, path: Path, flag: str) -> None:
        self.path = path
        self.grid = None
        self._flag = flag
        files = list_classes(path, {".npz"}, flag, "token files")
        self._files, self.labels, self.classes = files.paths, files.labels, files.classes
        first = self._load(0, flipped=False)
        self.num_tokens = first.size
        with blame(f"{flag}: {self._files[0]}"):
            grid_side(self.num_tokens)

    def read(self, indices: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        tokens = np.empty((len(indices), self.num_tokens), dtype=np.int64)
        for row, (index, flip) in enumerate(zip(indices, flipped, strict=True)):
            found = self._load(int(index), bool(flip))
            limit = self.vocab_size or math.inf
            if found.size != self.num_tokens or found.min() < 0 or found.max() >= limit:
                raise UserError(
                    f"{self._flag}: {self._files[index]} holds {found.size} indices from "
                    f"{found.min()} to {found.max()}, expected {self.num_tokens} in [0, {limit})"
                )
            tokens[row] = found
        return tokens

    def _load(self, index: int, flipped: bool) -> np.ndarray:
        """One grid, (N,) of an integer type."""
        file, name = self._files[index], "indices_flip" if flipped else "indices"
        try:
            with np.load(file, allow_pickle=False) as content:
                tokens = content[name]
        except _DAMAGED as error:
            raise UserError(
                f"{self._flag}: {file} cannot be read ({error}), expected an .npz with integer "
                "arrays 'indices' and 'indices_flip'"
            ) from error
        if tokens.dtype.kind not in "iu" or tokens.size == 0:
            raise UserError(
                f"{self._flag}: {file} holds {tokens.dtype} {tokens.shape} under {name!r}, "
                "expected integers"
            )
        return tokens.ravel()


def check_cache(
    cache: TokenCache,
    grid: TokenGrid,
    fingerprint: str | None,
    num_classes: int,
    flag: str = "--cached_path",
) -> None:
    """Refuse a cache that does not belong to this run.

    A published cache records neither image size nor vocabulary: it is taken at its number of
    tokens, with a warning, and held to `grid.vocab_size` from then on.

    Args:
        cache: what `open_cache` returned.
        grid: image size, stride and vocabulary of the run.
        fingerprint: of the run's tokenizer; None does not compare it.
        num_classes: classes of the model.
        flag: the flag that named the cache, for messages.

    Raises:
        UserError: another number of tokens, image size, vocabulary or tokenizer, or more classes.
    """
    made = f"{flag}: {cache.path} was made"
    if cache.grid is None and cache.num_tokens != grid.num_tokens:
        raise UserError(
            f"{flag}: {cache.path} has {cache.num_tokens} tokens per image, "
            f"expected {grid.num_tokens}"
        )
    if cache.grid is not None:
        for name, words in (
            ("image_size", "for image size"),
            ("vocab_size", "with a vocabulary of"),
            ("stride", "with a tokenizer of stride"),
        ):
            found, expected = getattr(cache.grid, name), getattr(grid, name)
            if found != expected:
                raise UserError(f"{made} {words} {found}, expected {expected}")
    if len(cache.classes) > num_classes:
        raise UserError(
            f"{flag}: {cache.path} has {len(cache.classes)} classes, expected at most the "
            f"{num_classes} of --class_num"
        )
    if cache.fingerprint is None:
        logger.warning("%s: which tokenizer made this cache is not recorded: unchecked", cache.path)
        cache.grid = grid
    elif fingerprint is not None and cache.fingerprint != fingerprint:
        raise UserError(
            f"{made} by the tokenizer {cache.fingerprint[:12]}, expected {fingerprint[:12]} "
            "(--vqgan_path)"
        )
