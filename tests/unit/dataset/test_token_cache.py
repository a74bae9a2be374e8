"""The token cache: round trip, refusals, the published layout, memory mapping."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import write_cache
from dataset.token_cache import check_cache, open_cache
from dataset.write_cache import LABELS_FILE, TOKENS_FILE, write_index, write_shard
from util.errors import UserError
from util.geometry import TokenGrid

GRID = TokenGrid(image_size=16, stride=4, vocab_size=50)
COUNTS = (3, 0, 4, 2)
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])


def _write(path: Path, grid: TokenGrid = GRID) -> np.ndarray:
    """Write a cache of random tokens and return them, (9, 2, N)."""
    path.mkdir(exist_ok=True)
    shape = (sum(COUNTS), 2, grid.num_tokens)
    tokens = np.random.default_rng(0).integers(0, grid.vocab_size, shape)
    for number, images in enumerate(np.split(np.arange(len(tokens)), np.cumsum(COUNTS)[:-1])):
        write_shard(path, number, tokens[images], LABELS[images], grid.vocab_size)
    write_index(path, grid, "f" * 64, ("ant", "bee", "cat"), COUNTS)
    return tokens


@pytest.fixture
def path(tmp_path: Path) -> Path:
    _write(tmp_path / "cache")
    return tmp_path / "cache"


def _edit_index(path: Path, **entries: object) -> None:
    index = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps({**index, **entries}))


def test_a_cache_that_is_cut_under_a_run_is_noticed(path: Path) -> None:
    """Reading on would be zeros, or the end of the process."""
    cache = open_cache(path)
    for length in (200, 0):
        os.truncate(path / TOKENS_FILE, length)
        with pytest.raises(UserError, match=f"^--cached_path: .*was changed: {length} bytes, exp"):
            cache.read(np.arange(9), np.zeros(9))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30_000), st.integers(1, 5000), st.integers(1, 9))
def test_plan_covers_every_image_once_in_order(images: int, batch: int, processes: int) -> None:
    shards = write_cache.plan_shards(images, batch, processes)
    flat = np.concatenate([b for shard in shards for b in shard])
    np.testing.assert_array_equal(flat, np.arange(images))
    assert all(sum(map(len, shard)) <= write_cache.MAX_SHARD_IMAGES for shard in shards)
    # The batches are those of one process, and nobody has two shards more than another.
    alone = [b.tolist() for shard in write_cache.plan_shards(images, batch, 1) for b in shard]
    assert [b.tolist() for shard in shards for b in shard] == alone
    if len(alone) <= processes:
        assert len(shards) == len(alone)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(50, np.uint16), (70_000, np.uint32)])
def test_round_trip(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    grid = TokenGrid(16, 4, vocab_size)
    tokens = _write(tmp_path, grid)
    cache = open_cache(tmp_path)
    assert (cache.num_images, cache.num_tokens, cache.grid) == (9, 16, grid)
    assert (cache.classes, cache.fingerprint) == (("ant", "bee", "cat"), "f" * 64)
    assert cache.labels.dtype == np.int64
    np.testing.assert_array_equal(cache.labels, LABELS)
    indices = np.array([8, 0, 3, 3, 2, 7, 6])
    flipped = np.array([True, False, False, True, True, False, True])
    found = cache.read(indices, flipped)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, tokens[indices, flipped.astype(int)])
    assert np.load(tmp_path / TOKENS_FILE).dtype == dtype
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"index.json", TOKENS_FILE, LABELS_FILE}
    with pytest.raises(IndexError):
        cache.read(np.array([9]), np.array([False]))


def test_large_cache_is_mapped_not_loaded(tmp_path: Path) -> None:
    """1,281,167 images in a sparse file: 1.3 GB that neither opening nor reading may load."""
    count = 1_281_167
    write_index(tmp_path, TokenGrid(256, 16, 16384), "f", ("a",), [])
    np.save(tmp_path / LABELS_FILE, np.zeros(count, dtype=np.int32))
    with (tmp_path / TOKENS_FILE).open("wb") as stream:
        header = {"descr": "<u2", "fortran_order": False, "shape": (count, 2, 256)}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.truncate(stream.tell() + count * 2 * 256 * 2)
    _edit_index(tmp_path, num_images=count)
    cache = open_cache(tmp_path)
    indices = np.arange(0, count, 5000)
    assert not cache.read(indices, indices % 2 == 0).any()
    assert isinstance(cache._tokens.base, np.memmap)


def test_shards_that_are_wrong_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"50, expected \[0, 50\)"):
        write_shard(tmp_path, 0, np.full((1, 2, 16), 50), np.zeros(1), 50)
    count = write_shard(tmp_path, 0, np.zeros((1, 2, 16), dtype=int), np.zeros(1), 50)
    file = tmp_path / "shard-00000.npz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="shard-00000.npz is damaged"):
        write_index(tmp_path, GRID, "f", ("a",), [count])
    assert not (tmp_path / "index.json").exists()


def test_bytes_that_changed_are_noticed(path: Path) -> None:
    """The last index goes beyond the vocabulary; more is in the table of bad input."""
    cache = open_cache(path)
    check_cache(cache, GRID, "f" * 64, num_classes=3)
    check_cache(cache, GRID, None, num_classes=1000)
    content = bytearray((path / TOKENS_FILE).read_bytes())
    content[-1] ^= 0x80
    (path / TOKENS_FILE).write_bytes(content)
    cache = open_cache(path)  # sizes and types still fit
    for check in (cache.verify, lambda: cache.read(np.array([8]), np.array([True]))):
        with pytest.raises(UserError, match=r"cache-tokens\.npy is damaged: checksum"):
            check()
    # Written so by another program: its checksum is right.
    crc32 = {name: write_cache.checksum(path / name) for name in (TOKENS_FILE, LABELS_FILE)}
    _edit_index(path, crc32=crc32)
    cache = open_cache(path)
    cache.verify()
    assert cache.read(np.array([8]), np.array([False])).max() < 50
    with pytest.raises(UserError, match=r"cache-tokens\.npy holds index \d+, expected \[0, 50\)$"):
        cache.read(np.array([8]), np.array([True]))


def test_check_cache_refuses_another_grid(path: Path) -> None:
    """More cases are in the table of bad input."""
    for grid in (TokenGrid(16, 8, 50), TokenGrid(16, 4, 51)):
        with pytest.raises(UserError, match=r"^--cached_path: .*made for .*=4, .*=50\), exp"):
            check_cache(open_cache(path), grid, "f" * 64, 3)


def test_unfinished_folders(path: Path) -> None:
    """More cases are in the table of bad input."""
    (path / "index.json").unlink()
    (path / ".shard-00007.npy.part").touch()
    write_cache.require_new_cache(path)
    (path / "labels.npy").touch()
    with pytest.raises(UserError, match="holds labels.npy, expected a new or empty folder"):
        write_cache.require_new_cache(path)
    write_cache.remove_unfinished(path)
    assert [file.name for file in path.iterdir()] == ["labels.npy"]


def test_published_layout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = np.random.default_rng(1).integers(0, 50, (4, 2, 16))
    names = ("n01/a.JPEG.npz", "n01/b.JPEG.npz", "n02/c.npz", "n02/d.npz")
    for name, (plain, mirrored) in zip(names, tokens, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.savez(tmp_path / name, indices=plain, indices_flip=mirrored)
    cache = open_cache(tmp_path)
    assert (cache.num_images, cache.num_tokens, cache.fingerprint) == (4, 16, None)
    assert (cache.classes, cache.labels.tolist()) == (("n01", "n02"), [0, 0, 1, 1])
    with pytest.raises(UserError, match="16 tokens per image, expected 64"):
        check_cache(cache, TokenGrid(32, 4, 50), None, 2)
    with caplog.at_level(logging.WARNING):
        check_cache(cache, GRID, "f" * 64, num_classes=2)
    assert len(caplog.records) == 1
    assert cache.grid == GRID
    indices, flipped = np.array([3, 0, 3]), np.array([True, False, False])
    found = cache.read(indices, flipped)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, tokens[indices, flipped.astype(int)])
    for name, value in (("indices", 50), ("indices", -1), ("other", 0)):
        np.savez(tmp_path / "n02" / "c.npz", **{name: np.full(16, value)})
        message = f"holds 16 indices from {value} to " if value else "cannot be read"
        with pytest.raises(UserError, match=rf"^--cached_path: .*n02/c\.npz {message}"):
            cache.read(np.array([0, 2]), np.array([False, False]))
