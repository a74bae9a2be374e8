"""Reading token caches: this project's, by memory-mapping, and the published layout."""

import copy
import logging
import math
from pathlib import Path

import numpy as np

from dataset import write_cache
from dataset.image_folder import list_classes
from dataset.write_cache import INDEX_FILE, LABELS_FILE, TOKENS_FILE
from util.arrays import map_npy, read_npz
from util.errors import UserError, blame
from util.files import read_json
from util.geometry import TokenGrid, grid_side

logger = logging.getLogger(__name__)

_INDEX_TYPES = dict.fromkeys(("image_size", "stride", "vocab_size", "num_images"), int)
_INDEX_TYPES |= {"fingerprint": str, "classes": list, "crc32": dict}


def open_cache(path: str | Path, flag: str = "--cached_path") -> "TokenCache":
    """Open a token cache, ours or as published, or raise `UserError`; `verify` reads checksums."""
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
    cache: "TokenCache", grid: TokenGrid, fingerprint: str | None, num_classes: int
) -> None:
    """Refuse a cache of another grid, tokenizer (if that is known) or more classes than a model's.

    All of it is read once, to compare checksums. A published cache records neither image size nor
    vocabulary: it is taken at its number of tokens, with a warning, and held to `grid.vocab_size`
    from then on. Raises a `UserError`.
    """
    problem = None
    if cache.grid not in (None, grid):
        problem = f"was made for {cache.grid}, expected {grid}"
    elif cache.num_tokens != grid.num_tokens:
        problem = f"has {cache.num_tokens} tokens per image, expected {grid.num_tokens}"
    elif len(cache.classes) > num_classes:
        problem = f"has {len(cache.classes)} classes, expected at most {num_classes} (--class_num)"
    elif None not in (cache.fingerprint, fingerprint) and cache.fingerprint != fingerprint:
        made_by, expected = cache.fingerprint[:12], fingerprint[:12]
        problem = f"was made by the tokenizer {made_by}, expected {expected} (--vqgan_path)"
    if problem is not None:
        raise UserError(f"{cache.flag}: {cache.path} {problem}")
    if cache.fingerprint is None:
        logger.warning("%s: which tokenizer made this cache is not recorded: unchecked", cache.path)
        cache.grid = grid
    cache.verify()


class TokenCache:
    """The tokens of a data set, plain and mirrored."""

    path: Path
    flag: str  # what named it, for messages
    classes: tuple[str, ...]
    labels: np.ndarray  # (n,) int64, indices into `classes`
    num_tokens: int  # N, per image
    # Where neither is recorded `check_cache` supplies the grid.
    grid: TokenGrid | None = None
    fingerprint: str | None = None

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
        self.path, self.flag = path, flag
        with blame(flag):
            index = read_json(path / INDEX_FILE)
        with blame(f"{flag}: {path / INDEX_FILE}"):
            if not isinstance(index, dict) or index.get("format") != write_cache.FORMAT:
                raise ValueError("is not the index of a token cache")
            if (version := index.get("version")) != write_cache.VERSION:
                raise ValueError(f"has version {version!r:.40}, expected {write_cache.VERSION}")
            for name, kind in _INDEX_TYPES.items():
                value = index.get(name)
                if not isinstance(value, kind) or (kind is int and abs(value) >= 2**63):
                    raise ValueError(f"is damaged: no usable entry {name!r}")
            self.grid = TokenGrid(index["image_size"], index["stride"], index["vocab_size"])
        self.num_tokens, self.fingerprint = self.grid.num_tokens, index["fingerprint"]
        self.classes, self._checksums = tuple(index["classes"]), index["crc32"]
        count = index["num_images"]
        self.labels = np.asarray(self._map(LABELS_FILE, (count,), np.dtype(np.int32)), np.int64)
        if not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise UserError(
                f"{flag}: {path / LABELS_FILE} is damaged: labels from {self.labels.min()} to "
                f"{self.labels.max()}, expected [0, {len(self.classes)})"
            )
        dtype = write_cache.token_dtype(self.grid.vocab_size)
        mapped = self._map(TOKENS_FILE, (count, 2, self.num_tokens), dtype)
        self._name, self._bytes_now = f"{flag}: {path / TOKENS_FILE}", mapped.base.size
        self._bytes = self._bytes_now()
        self._tokens = np.asarray(mapped)  # indexing a memmap makes memmaps, which is slow

    def read(self, indices: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        size = self._bytes_now()
        if size != self._bytes:  # reading beyond the end of a mapped file kills the process
            raise UserError(f"{self._name} was changed: {size} bytes, expected {self._bytes}")
        ways = np.asarray(flipped, dtype=np.intp)  # bools would be a mask
        tokens = self._tokens[indices, ways].astype(np.int64)
        if tokens.size and tokens.max() >= self.grid.vocab_size:
            self.verify()  # names a file that has changed since
            raise UserError(
                f"{self._name} holds index {tokens.max()}, expected [0, {self.grid.vocab_size})"
            )
        return tokens

    def verify(self) -> None:
        for name in (TOKENS_FILE, LABELS_FILE):
            with blame(self.flag):
                found, expected = write_cache.checksum(self.path / name), self._checksums.get(name)
            if found != expected:
                raise UserError(
                    f"{self.flag}: {self.path / name} is damaged: checksum {found}, expected "
                    f"{expected!s:.20}"
                )

    def _map(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
        """Memory-map a file of the cache, if it holds just that."""
        file, expected = self.path / name, f"{dtype} {shape}"
        with blame(f"{self.flag}: {file}"):
            if not file.is_file():
                raise ValueError(f"is missing, expected {expected}")
            array = map_npy(file)
            if (array.shape, array.dtype) != (shape, dtype):
                raise ValueError(f"holds {array.dtype} {array.shape}, expected {expected}")
            return array


class PublishedCache(TokenCache):
    """The published layout: `<class>/<image name>.npz` with `indices` and `indices_flip`; slow."""

    def __init__(self, path: Path, flag: str) -> None:
        self.path, self.flag = path, flag
        self._files, self.labels, self.classes = list_classes(path, "token files", flag)
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

    def select(self, indices: np.ndarray) -> "PublishedCache":
        """Return a cache of some images, in that order, small enough to send to a process."""
        part = copy.copy(self)
        part._files = tuple(self._files[index] for index in indices)
        part.labels = self.labels[indices]
        return part

    def _load(self, index: int, flipped: bool) -> np.ndarray:
        """Read one grid, (N,) of an integer type."""
        file, name = self._files[index], "indices_flip" if flipped else "indices"
        try:
            tokens = read_npz(file, [name])[name].ravel()
            if tokens.dtype.kind not in "iu" or tokens.size == 0:
                raise ValueError(f"{name} holds {tokens.size} x {tokens.dtype}")
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.flag}: {file} cannot be read ({error}), expected an .npz with integer "
                "arrays 'indices' and 'indices_flip'"
            ) from error
        return tokens
