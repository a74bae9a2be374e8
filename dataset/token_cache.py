"""Reading token caches: this project's, by memory-mapping, and the published layout."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from dataset.image_folder import list_classes
from dataset.write_cache import (
    FORMAT,
    INDEX_FILE,
    LABELS_FILE,
    TOKENS_FILE,
    VERSION,
    checksum,
    holds_unfinished,
    token_dtype,
)
from util.arrays import map_npy, read_npz
from util.errors import UserError, blame
from util.files import open_file
from util.geometry import TokenGrid, grid_side

logger = logging.getLogger(__name__)


def open_cache(path: str | Path, flag: str = "--cached_path") -> TokenCache:
    """Open a token cache, this project's or the published layout.

    File sizes and types are checked against the index, checksums are not (`TokenCache.verify`).

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
        return MappedCache(path, flag)
    if holds_unfinished(path):
        raise UserError(
            f"{flag}: {path} holds tokens but no {INDEX_FILE}, expected a finished token cache"
        )
    return PublishedCache(path, flag)


def check_cache(
    cache: TokenCache,
    grid: TokenGrid,
    fingerprint: str | None,
    num_classes: int,
    flag: str = "--cached_path",
) -> None:
    """Refuse a cache that does not belong to this run, or is damaged: all of it is read once.

    A published cache records neither image size nor vocabulary: it is taken at its number of
    tokens, with a warning, and held to `grid.vocab_size` from then on.

    Args:
        cache: what `open_cache` returned.
        grid: image size, stride and vocabulary of the run.
        fingerprint: of the run's tokenizer; None does not compare it.
        num_classes: classes of the model.
        flag: the flag that named the cache, for messages.

    Raises:
        UserError: another number of tokens, image size, vocabulary or tokenizer, more classes, or
            other bytes than were written.
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
    cache.verify()


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

    def verify(self) -> None:  # noqa: B027 (the published layout has nothing to compare)
        """Read everything once and compare checksums, where there are any; 1.5 GB/s.

        Raises:
            UserError: the first file that differs from what was written.
        """


class MappedCache(TokenCache):
    """This project's own format (`cache_writer`): opening it reads the labels only."""

    def __init__(self, path: Path, flag: str) -> None:
        self.path = path
        self._flag = flag
        index = _read_index(path / INDEX_FILE, flag)
        with blame(f"{flag}: {path / INDEX_FILE}"):
            self.grid = TokenGrid(index["image_size"], index["stride"], index["vocab_size"])
        self.num_tokens = self.grid.num_tokens
        self.fingerprint = index["fingerprint"]
        self.classes = tuple(index["classes"])
        self._checksums = index["crc32"]
        count = index["num_images"]
        labels = self._map(LABELS_FILE, (count,), np.dtype(np.int32))
        self.labels = labels.astype(np.int64)
        self._check_labels()
        self._map_tokens()

    def read(self, indices: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        indices, flipped = np.asarray(indices, dtype=np.intp), np.asarray(flipped, dtype=np.intp)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.num_images:
            raise IndexError(f"found {indices}, expected indices in [0, {self.num_images})")
        self._check_size()
        tokens = self._tokens[indices, flipped].astype(np.int64)
        if tokens.size and tokens.max() >= self.vocab_size:
            self.verify()  # names a file that has changed since
            raise UserError(
                f"{self._flag}: {self.path / TOKENS_FILE} holds index {tokens.max()}, "
                f"expected [0, {self.vocab_size})"
            )
        return tokens

    def verify(self) -> None:
        for name, expected in self._checksums.items():
            file = self.path / name
            with blame(self._flag):
                found = checksum(file)
            if found != expected:
                raise UserError(
                    f"{self._flag}: {file} is damaged: checksum {found:08x}, "
                    f"expected {expected:08x}"
                )

    def _map_tokens(self) -> None:
        shape = (self.num_images, 2, self.num_tokens)
        self._tokens = self._map(TOKENS_FILE, shape, token_dtype(self.grid.vocab_size))
        with blame(f"{self._flag}: {self.path / TOKENS_FILE}"):
            self._file = open_file(self.path / TOKENS_FILE)
        self._size = os.fstat(self._file.fileno()).st_size

    def _check_size(self) -> None:
        """Raise a UserError if the mapped file was cut: reading beyond its end kills a process."""
        found = os.fstat(self._file.fileno()).st_size
        if found != self._size:
            raise UserError(
                f"{self._flag}: {self.path / TOKENS_FILE} was changed: {found} bytes, expected "
                f"{self._size}"
            )

    def _map(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A file of the cache, memory-mapped, if it holds just that."""
        file = self.path / name
        with blame(f"{self._flag}: {file}"):
            if not file.is_file():
                raise ValueError(f"is missing, expected {dtype} {shape}")
            found = map_npy(file)
            if (found.shape, found.dtype) != (shape, dtype):
                raise ValueError(f"holds {found.dtype} {found.shape}, expected {dtype} {shape}")
            return np.asarray(found)

    def _check_labels(self) -> None:
        """Raise a UserError unless every image has a class."""
        if not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise UserError(
                f"{self._flag}: {self.path / LABELS_FILE} is damaged: labels from "
                f"{self.labels.min()} to {self.labels.max()}, expected [0, {len(self.classes)})"
            )

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry the tokens along; an open file cannot be pickled.
        own = ("_tokens", "_file", "_size")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map_tokens()


def _read_index(file: Path, flag: str) -> dict[str, Any]:
    """The parsed index, with every entry of the type this version writes."""
    with blame(f"{flag}: {file}"):
        with open_file(file) as stream:
            content = stream.read()
        try:
            index = json.loads(content.decode())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is damaged: {error}, expected JSON") from error
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise ValueError("is not the index of a token cache")
        if index.get("version") != VERSION:
            raise ValueError(f"has version {index.get('version')!r:.40}, expected {VERSION}")
        integers = ("image_size", "stride", "vocab_size", "num_tokens", "num_images")
        types = dict.fromkeys(integers, int) | {"fingerprint": str, "classes": list, "crc32": dict}
        for name, expected in types.items():
            value = index.get(name)
            if not isinstance(value, expected) or (expected is int and abs(value) >= 2**63):
                raise ValueError(f"is damaged: no usable entry {name!r}")
        checksums = index["crc32"]
        if checksums.keys() != {TOKENS_FILE, LABELS_FILE} or not all(
            isinstance(value, int) for value in checksums.values()
        ):
            raise ValueError(f"is damaged: found checksums {checksums!s:.80}")
        if index["num_images"] < 1:
            raise ValueError(f"is damaged: found {index['num_images']} images")
        return index


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

    def select(self, indices: np.ndarray) -> PublishedCache:
        """A cache of some images only, in that order; small enough to send to another process."""
        part = copy.copy(self)
        part._files = tuple(self._files[index] for index in indices)
        part.labels = self.labels[indices]
        return part

    def _load(self, index: int, flipped: bool) -> np.ndarray:
        """One grid, (N,) of an integer type."""
        file, name = self._files[index], "indices_flip" if flipped else "indices"
        try:
            tokens = read_npz(file, [name])[name]
        except (OSError, ValueError, KeyError) as error:
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
