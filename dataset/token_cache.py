"""Reading token caches: this project's, by memory-mapping, and the published layout."""

from __future__ import annotations

import copy
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from dataset import write_cache
from dataset.image_folder import list_classes
from dataset.write_cache import INDEX_FILE, LABELS_FILE, TOKENS_FILE
from util.arrays import map_npy, read_npz
from util.errors import UserError, blame
from util.files import open_file, read_json
from util.geometry import TokenGrid, grid_side

logger = logging.getLogger(__name__)


def open_cache(path: str | Path, flag: str = "--cached_path") -> TokenCache:
    """Open a token cache, this project's or the published layout, or raise a `UserError`.

    File sizes and types are checked against the index, checksums are not (`TokenCache.verify`).
    """
    if not str(path):
        raise UserError(f"{flag}: found nothing, expected the folder of a token cache")
    path = Path(path)
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{flag}: {path} {problem}, expected the folder of a token cache")
    if (path / INDEX_FILE).exists():
        return MappedCache(path, flag)
    if write_cache.unfinished_files(path):
        raise UserError(
            f"{flag}: {path} holds tokens but no {INDEX_FILE}, expected a finished token cache"
        )
    return PublishedCache(path, flag)


def check_cache(
    cache: TokenCache, grid: TokenGrid, fingerprint: str | None, num_classes: int
) -> None:
    """Refuse a cache of another grid, tokenizer (if that is known) or more classes than a model's.

    All of it is read once, to compare checksums. A published cache records neither image size nor
    vocabulary: it is taken at its number of tokens, with a warning, and held to `grid.vocab_size`
    from then on. Raises a `UserError`.
    """
    name, own = f"{cache.flag}: {cache.path}", cache.grid
    if own is None and cache.num_tokens != grid.num_tokens:
        raise UserError(
            f"{name} has {cache.num_tokens} tokens per image, expected {grid.num_tokens}"
        )
    for words, attribute in (
        ("for image size", "image_size"),
        ("with a vocabulary of", "vocab_size"),
        ("with a tokenizer of stride", "stride"),
    ):
        if own is not None and getattr(own, attribute) != getattr(grid, attribute):
            recorded, expected = getattr(own, attribute), getattr(grid, attribute)
            raise UserError(f"{name} was made {words} {recorded}, expected {expected}")
    if len(cache.classes) > num_classes:
        raise UserError(
            f"{name} has {len(cache.classes)} classes, expected at most the {num_classes} of "
            "--class_num"
        )
    if cache.fingerprint is None:
        logger.warning("%s: which tokenizer made this cache is not recorded: unchecked", cache.path)
        cache.grid = grid
    elif fingerprint is not None and cache.fingerprint != fingerprint:
        raise UserError(
            f"{name} was made by the tokenizer {cache.fingerprint[:12]}, expected "
            f"{fingerprint[:12]} (--vqgan_path)"
        )
    cache.verify()


class TokenCache:
    """The tokens of a data set, plain and mirrored, in a folder that `flag` named."""

    classes: tuple[str, ...]
    labels: np.ndarray  # (n,) int64, indices into `classes`
    num_tokens: int  # N, per image
    # The published layout records neither; there `check_cache` supplies the grid.
    grid: TokenGrid | None = None
    fingerprint: str | None = None

    def __init__(self, path: Path, flag: str) -> None:
        self.path, self.flag = path, flag

    @property
    def num_images(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        """Fetch tokens (B, N) int64, raster order, of images `indices` (B,).

        `flipped` (B,) is True for mirrored ones. Raises an `IndexError` if there is no such image,
        a `UserError` if a file has gone or is damaged.
        """
        raise NotImplementedError

    def verify(self) -> None:
        """Read all and compare checksums, where there are any (1.5 GB/s), or raise `UserError`."""


class MappedCache(TokenCache):
    """This project's own format (`write_cache`): opening it reads the labels only."""

    def __init__(self, path: Path, flag: str) -> None:
        super().__init__(path, flag)
        with blame(flag):
            index = read_json(path / INDEX_FILE)
        with blame(f"{flag}: {path / INDEX_FILE}"):
            _check_index(index)
            self.grid = TokenGrid(index["image_size"], index["stride"], index["vocab_size"])
        self.num_tokens, self.fingerprint = self.grid.num_tokens, index["fingerprint"]
        self.classes, self._checksums = tuple(index["classes"]), index["crc32"]
        count = index["num_images"]
        self.labels = self._map(LABELS_FILE, (count,), np.dtype(np.int32)).astype(np.int64)
        if not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise UserError(
                f"{flag}: {path / LABELS_FILE} is damaged: labels from {self.labels.min()} to "
                f"{self.labels.max()}, expected [0, {len(self.classes)})"
            )
        dtype = write_cache.token_dtype(self.grid.vocab_size)
        self._tokens = self._map(TOKENS_FILE, (count, 2, self.num_tokens), dtype)
        self._name = f"{flag}: {path / TOKENS_FILE}"
        with blame(self._name):
            self._file = open_file(path / TOKENS_FILE)
        self._size = os.fstat(self._file.fileno()).st_size

    def read(self, indices: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        indices, flipped = np.asarray(indices, dtype=np.intp), np.asarray(flipped, dtype=np.intp)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.num_images:
            raise IndexError(f"found {indices}, expected indices in [0, {self.num_images})")
        size = os.fstat(self._file.fileno()).st_size
        if size != self._size:  # reading beyond the end of a mapped file kills the process
            raise UserError(f"{self._name} was changed: {size} bytes, expected {self._size}")
        tokens = self._tokens[indices, flipped].astype(np.int64)
        if tokens.size and tokens.max() >= self.grid.vocab_size:
            self.verify()  # names a file that has changed since
            raise UserError(
                f"{self._name} holds index {tokens.max()}, expected [0, {self.grid.vocab_size})"
            )
        return tokens

    def verify(self) -> None:
        for name, expected in self._checksums.items():
            file = self.path / name
            with blame(self.flag):
                crc = write_cache.checksum(file)
            if crc != expected:
                raise UserError(
                    f"{self.flag}: {file} is damaged: checksum {crc:08x}, expected {expected:08x}"
                )

    def _map(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Memory-map a file of the cache, if it holds just that."""
        file = self.path / name
        with blame(f"{self.flag}: {file}"):
            if not file.is_file():
                raise ValueError(f"is missing, expected {dtype} {shape}")
            array = map_npy(file)
            if (array.shape, array.dtype) != (shape, dtype):
                raise ValueError(f"holds {array.dtype} {array.shape}, expected {dtype} {shape}")
            return np.asarray(array)  # indexing a memmap makes memmaps, which is slow


def _check_index(index: Any) -> None:
    """Raise a `ValueError` unless every entry is of the type that this version writes."""
    if not isinstance(index, dict) or index.get("format") != write_cache.FORMAT:
        raise ValueError("is not the index of a token cache")
    if index.get("version") != write_cache.VERSION:
        raise ValueError(
            f"has version {index.get('version')!r:.40}, expected {write_cache.VERSION}"
        )
    integers = ("image_size", "stride", "vocab_size", "num_tokens", "num_images")
    types = dict.fromkeys(integers, int) | {"fingerprint": str, "classes": list, "crc32": dict}
    for name, expected in types.items():
        value = index.get(name)
        if not isinstance(value, expected) or (expected is int and abs(value) >= 2**63):
            raise ValueError(f"is damaged: no usable entry {name!r}")
    found = {name: type(value) for name, value in index["crc32"].items()}
    if found != {TOKENS_FILE: int, LABELS_FILE: int}:
        raise ValueError(f"is damaged: found checksums {index['crc32']!s:.80}")
    if index["num_images"] < 1:
        raise ValueError(f"is damaged: found {index['num_images']} images")


class PublishedCache(TokenCache):
    """The published layout: `<class>/<image name>.npz` with `indices` and `indices_flip`; slow."""

    def __init__(self, path: Path, flag: str) -> None:
        super().__init__(path, flag)
        files = list_classes(path, (".npz",), flag, "token files")
        self._files, self.labels, self.classes = files.paths, files.labels, files.classes
        self.num_tokens = self._load(0, flipped=False).size
        with blame(f"{flag}: {self._files[0]}"):
            grid_side(self.num_tokens)

    def read(self, indices: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        tokens = np.empty((len(indices), self.num_tokens), dtype=np.int64)
        limit = self.grid.vocab_size if self.grid else math.inf
        for row, index, flip in zip(tokens, indices, flipped, strict=True):
            image = self._load(int(index), bool(flip))
            if image.size != self.num_tokens or image.min() < 0 or image.max() >= limit:
                raise UserError(
                    f"{self.flag}: {self._files[index]} holds {image.size} indices from "
                    f"{image.min()} to {image.max()}, expected {self.num_tokens} in [0, {limit})"
                )
            row[:] = image
        return tokens

    def select(self, indices: np.ndarray) -> PublishedCache:
        """Return a cache of some images, in that order, small enough to send to a process."""
        part = copy.copy(self)
        part._files = tuple(self._files[index] for index in indices)
        part.labels = self.labels[indices]
        return part

    def _load(self, index: int, flipped: bool) -> np.ndarray:
        """Read one grid, (N,) of an integer type."""
        file, name = self._files[index], "indices_flip" if flipped else "indices"
        try:
            tokens = read_npz(file, [name])[name]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.flag}: {file} cannot be read ({error}), expected an .npz with integer "
                "arrays 'indices' and 'indices_flip'"
            ) from error
        if tokens.dtype.kind not in "iu" or tokens.size == 0:
            raise UserError(
                f"{self.flag}: {file} holds {tokens.dtype} {tokens.shape} under {name!r}, "
                "expected integers"
            )
        return tokens.ravel()
