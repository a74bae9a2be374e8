"""The token cache: round trip, refusals, the published layout, memory mapping."""

import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.token_cache import check_cache, open_cache
from dataset.write_cache import (
    LABELS_FILE,
    MAX_SHARD_IMAGES,
    TOKENS_FILE,
    plan_shards,
    remove_unfinished,
    require_new_cache,
    write_index,
    write_shard,
)
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
    shards = []
    for images in np.split(np.arange(len(tokens)), np.cumsum(COUNTS)[:-1]):
        parts = (tokens[images], LABELS[images])
        shards.append(write_shard(path, len(shards), *parts, grid.vocab_size))
    write_index(path, grid, "f" * 64, ("ant", "bee", "cat"), shards)
    return tokens


@pytest.fixture
def path(tmp_path: Path) -> Path:
    _write(tmp_path / "cache")
    return tmp_path / "cache"


def _edit_index(path: Path, **entries: object) -> None:
    index = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps({**index, **entries}))


@pytest.mark.parametrize("length", [0, 200])
def test_a_cache_that_is_cut_under_a_run_is_noticed(path: Path, length: int) -> None:
    """Reading on would be zeros, or the end of the process."""
    cache = open_cache(path)
    cache.read(np.arange(9), np.zeros(9))
    os.truncate(path / TOKENS_FILE, length)
    with pytest.raises(UserError, match=f"^--cached_path: .*was changed: {length} bytes, exp"):
        cache.read(np.arange(9), np.zeros(9))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30_000), st.integers(1, 5000), st.integers(1, 9))
def test_plan_covers_every_image_once_in_order(images: int, batch: int, processes: int) -> None:
    shards = plan_shards(images, batch, processes)
    flat = np.concatenate([b for shard in shards for b in shard])
    np.testing.assert_array_equal(flat, np.arange(images))
    assert all(sum(map(len, shard)) <= MAX_SHARD_IMAGES for shard in shards)
    # The batches are those of one process, and nobody has two shards more than another.
    alone = [b.tolist() for shard in plan_shards(images, batch, 1) for b in shard]
    assert [b.tolist() for shard in shards for b in shard] == alone
    if len(alone) <= processes:
        assert len(shards) == len(alone)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(50, np.uint16), (70_000, np.uint32)])
def test_round_trip(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    grid = TokenGrid(16, 4, vocab_size)
    tokens = _write(tmp_path, grid)
    cache = open_cache(tmp_path)
    assert (cache.num_images, cache.num_tokens, cache.grid) == (9, 16, grid)
    assert cache.classes == ("ant", "bee", "cat")
    assert cache.fingerprint == "f" * 64
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
    assert cache.read(np.array([], dtype=int), np.array([], dtype=bool)).shape == (0, 16)
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
    started = time.process_time()
    cache = open_cache(tmp_path)
    indices = np.arange(0, count, 5000)
    assert not cache.read(indices, indices % 2 == 0).any()
    assert time.process_time() - started < 2
    assert isinstance(cache._tokens.base, np.memmap)


def test_write_shard_refuses_indices_beyond_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"50, expected \[0, 50\)"):
        write_shard(tmp_path, 0, np.full((1, 2, 16), 50), np.zeros(1), 50)


def test_write_index_refuses_a_damaged_shard(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, 0, np.zeros((1, 2, 16), dtype=int), np.zeros(1), 50)
    file = tmp_path / "shard-00000.npz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="shard-00000.npz is damaged"):
        write_index(tmp_path, GRID, "f", ("a",), [shard])
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / TOKENS_FILE).write_text("x"), "cache-tokens.npy: "),
        (lambda p: (p / LABELS_FILE).unlink(), "cache-labels.npy: is missing"),
        (lambda p: (p / "index.json").write_text("[1]"), "not the index of a token cache"),
        (lambda p: _edit_index(p, num_images=8), "cache-labels.npy: holds int32"),
        (lambda p: _edit_index(p, image_size=17), "not a multiple"),
        (lambda p: _edit_index(p, crc32={"../x": 0}), "found checksums"),
        (lambda p: _edit_index(p, num_images=0), "found 0 images"),
    ],
)
def test_damaged_cache_is_one_line(path: Path, damage: object, message: str) -> None:
    """More cases are in the table of bad input."""
    damage(path)  # type: ignore[operator]
    with pytest.raises(UserError, match=f"^--cached_path: .*{message}") as caught:
        open_cache(path)
    assert "\n" not in str(caught.value)


def test_verify_finds_a_changed_byte(path: Path) -> None:
    cache = open_cache(path)
    cache.verify()
    file = path / TOKENS_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 0x80
    file.write_bytes(content)
    cache = open_cache(path)  # sizes and types still fit
    with pytest.raises(UserError, match=r"cache-tokens\.npy is damaged: checksum"):
        cache.verify()
    with pytest.raises(UserError, match="checksum"):  # the index is now beyond the vocabulary
        cache.read(np.array([8]), np.array([True]))


def test_check_cache_refuses_what_does_not_belong(path: Path) -> None:
    cache = open_cache(path)
    check_cache(cache, GRID, "f" * 64, num_classes=3)
    check_cache(cache, GRID, None, num_classes=1000)
    for grid, fingerprint, num_classes, message in (
        (TokenGrid(32, 4, 50), "f" * 64, 3, "image size 16, expected 32"),
        (TokenGrid(16, 8, 50), "f" * 64, 3, "stride 4, expected 8"),
        (TokenGrid(16, 4, 51), "f" * 64, 3, "vocabulary of 50, expected 51"),
        (GRID, "e" * 64, 3, "tokenizer ffffffffffff, expected eeeeeeeeeeee"),
        (GRID, "f" * 64, 2, "3 classes, expected at most the 2"),
    ):
        with pytest.raises(UserError, match=f"^--cached_path: .*{message}"):
            check_cache(cache, grid, fingerprint, num_classes)


def test_finished_and_unfinished_folders(path: Path) -> None:
    with pytest.raises(UserError, match="already holds a finished token cache"):
        require_new_cache(path)
    (path / "index.json").unlink()
    (path / ".shard-00007.npy.part").touch()
    require_new_cache(path)
    (path / "labels.npy").touch()
    with pytest.raises(UserError, match="holds labels.npy, expected a new or empty folder"):
        require_new_cache(path)
    remove_unfinished(path)
    assert [file.name for file in path.iterdir()] == ["labels.npy"]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    tokens = np.random.default_rng(1).integers(0, 50, (4, 2, 16))
    np.save(tmp_path / "expected.npy", tokens)
    names = ("n01/a.JPEG.npz", "n01/b.JPEG.npz", "n02/c.npz", "n02/d.npz")
    for name, (plain, mirrored) in zip(names, tokens, strict=True):
        file = tmp_path / "published" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, indices=plain, indices_flip=mirrored)
    return tmp_path / "published"


def test_published_layout(published: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = open_cache(published)
    assert (cache.num_images, cache.num_tokens) == (4, 16)
    assert cache.classes == ("n01", "n02")
    assert cache.labels.tolist() == [0, 0, 1, 1]
    assert cache.fingerprint is None
    with caplog.at_level(logging.WARNING):
        check_cache(cache, GRID, "f" * 64, num_classes=2)
    assert len(caplog.records) == 1
    assert cache.grid == GRID
    tokens = np.load(published.parent / "expected.npy")
    indices, flipped = np.array([3, 0, 3]), np.array([True, False, False])
    found = cache.read(indices, flipped)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, tokens[indices, flipped.astype(int)])
    with pytest.raises(UserError, match="16 tokens per image, expected 64"):
        check_cache(open_cache(published), TokenGrid(32, 4, 50), None, 2)


def test_published_files_are_checked_on_read(published: Path) -> None:
    """More cases are in the table of bad input."""
    cache = open_cache(published)
    check_cache(cache, GRID, None, num_classes=2)
    for arrays, message in (
        ({"indices": np.full(16, 50)}, r"from 50 to 50, expected 16 in \[0, 50\)"),
        ({"indices": np.full(16, -1)}, "from -1"),
        ({"other": np.zeros(16, dtype=int)}, "cannot be read"),
    ):
        np.savez(published / "n02" / "c.npz", **arrays)
        with pytest.raises(UserError, match=rf"^--cached_path: .*n02/c\.npz .*{message}"):
            cache.read(np.array([0, 2]), np.array([False, False]))
