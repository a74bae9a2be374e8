"""Token caches: round trip, refusals, damage of all kinds; the published layout."""

import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataset import write_cache
from dataset.token_cache import check_cache, open_cache
from dataset.write_cache import INDEX_FILE, LABELS_FILE, TOKENS_FILE, write_index, write_shard
from tests import fuzzing
from util.errors import UserError
from util.geometry import TokenGrid

GRID = TokenGrid(image_size=16, stride=4, vocab_size=50)
COUNTS = (3, 0, 4, 2)
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])
INDICES = np.array([8, 0, 3, 3, 2, 7, 6])
FLIPPED = np.array([True, False, False, True, True, False, True])


def write_ours(path: Path, grid: TokenGrid = GRID) -> np.ndarray:
    """Write a cache of random tokens and return them, (9, 2, N)."""
    shape = (len(LABELS), 2, grid.num_tokens)
    tokens = np.random.default_rng(0).integers(0, grid.vocab_size, shape)
    for number, images in enumerate(np.split(np.arange(len(LABELS)), np.cumsum(COUNTS)[:-1])):
        write_shard(path, number, tokens[images], LABELS[images], grid.vocab_size)
    write_index(path, grid, "f" * 64, ("ant", "bee", "cat"), COUNTS)
    return tokens


def write_published(path: Path) -> np.ndarray:
    """The same in the published layout, (4, 2, 16)."""
    tokens = np.random.default_rng(1).integers(0, 50, (4, 2, 16))
    names = ("n01/a.JPEG.npz", "n01/b.JPEG.npz", "n02/c.npz", "n02/d.npz")
    for name, (plain, mirrored) in zip(names, tokens, strict=True):
        (path / name).parent.mkdir(exist_ok=True)
        np.savez(path / name, indices=plain, indices_flip=mirrored)
    return tokens


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
    tokens = write_ours(tmp_path, grid)
    cache = open_cache(tmp_path)
    assert (cache.num_images, cache.num_tokens, cache.grid) == (9, 16, grid)
    assert (cache.classes, cache.fingerprint) == (("ant", "bee", "cat"), "f" * 64)
    assert cache.labels.dtype == np.int64
    np.testing.assert_array_equal(cache.labels, LABELS)
    found = cache.read(INDICES, FLIPPED)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, tokens[INDICES, FLIPPED.astype(int)])
    assert isinstance(cache._tokens.base, np.memmap)  # a gigabyte of ImageNet is not loaded
    assert np.load(tmp_path / TOKENS_FILE).dtype == dtype
    assert {file.name for file in tmp_path.iterdir()} == {INDEX_FILE, TOKENS_FILE, LABELS_FILE}
    with pytest.raises(IndexError):
        cache.read(np.array([9]), np.array([False]))


def test_shards_that_are_wrong_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"50, expected \[0, 50\)"):
        write_shard(tmp_path, 0, np.full((1, 2, 16), 50), np.zeros(1), 50)
    count = write_shard(tmp_path, 0, np.zeros((1, 2, 16), dtype=int), np.zeros(1), 50)
    file = tmp_path / "shard-00000.npz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="shard-00000.npz is damaged"):
        write_index(tmp_path, GRID, "f", ("a",), [count])
    assert not (tmp_path / INDEX_FILE).exists()


def test_bytes_that_changed_are_noticed(tmp_path: Path) -> None:
    """The last index goes beyond the vocabulary; more is in the page of bad input."""
    write_ours(tmp_path)
    cache, file = open_cache(tmp_path), tmp_path / TOKENS_FILE
    check_cache(cache, GRID, "f" * 64, num_classes=3)
    check_cache(cache, GRID, None, num_classes=1000)
    content = bytearray(file.read_bytes())
    content[-1] ^= 0x80
    file.write_bytes(content)
    cache = open_cache(tmp_path)  # which reads no tokens; sizes and types still fit
    for check in (cache.verify, lambda: cache.read(np.array([8]), np.array([True]))):
        with pytest.raises(UserError, match=r"cache-tokens\.npy is damaged: checksum"):
            check()
    # Written so by another program: its checksum is right.
    sums = {name: write_cache.checksum(tmp_path / name) for name in (TOKENS_FILE, LABELS_FILE)}
    (tmp_path / INDEX_FILE).write_text(json.dumps({**INDEX, "crc32": sums}))
    cache = open_cache(tmp_path)
    cache.verify()
    assert cache.read(np.array([8]), np.array([False])).max() < 50
    with pytest.raises(UserError, match=r"cache-tokens\.npy holds index \d+, expected \[0, 50\)$"):
        cache.read(np.array([8]), np.array([True]))
    for length in (200, 0):  # cut under a run: reading on would be zeros, or the process's end
        os.truncate(file, length)
        with pytest.raises(UserError, match=f"^--cached_path: .*was changed: {length} bytes, exp"):
            cache.read(np.array([8]), np.array([False]))


def test_published_layout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens, cache = write_published(tmp_path), open_cache(tmp_path)
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


def contents(write: Callable[[Path], object]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def unpack(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


OURS, PUBLISHED = contents(write_ours), contents(write_published)
INDEX = json.loads(OURS[INDEX_FILE])


def check(files: dict[str, bytes]) -> None:
    """Only tokens of the vocabulary come out of a cache of these files, or one line."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(files, Path(folder))
        try:
            cache = open_cache(folder)
            check_cache(cache, cache.grid or GRID, None, 1000)
            assert (cache.labels >= 0).all() and (cache.labels < len(cache.classes)).all()
            both = np.arange(cache.num_images).repeat(2)
            tokens = cache.read(both, np.arange(len(both)) % 2 == 1)
            assert tokens.shape == (len(both), cache.num_tokens)
            assert (tokens >= 0).all() and (tokens < cache.grid.vocab_size).all()
        except UserError as error:
            assert fuzzing.one_line(error) and str(error).startswith(f"--cached_path: {folder}")


@settings(deadline=None)
@given(st.data())
def test_damaged_files(data: st.DataObject) -> None:
    files = data.draw(st.sampled_from([OURS, OURS, PUBLISHED]))
    name = data.draw(st.sampled_from(sorted(files)))
    any_array = [fuzzing.HEADERS] if name in (TOKENS_FILE, LABELS_FILE) else []
    check({**files, name: data.draw(st.one_of(fuzzing.damaged(files[name]), *any_array))})


INTEGERS = st.one_of(st.integers(-2, 60), st.sampled_from([2**31, 2**63, 10**4000]))
VALUES = st.one_of(fuzzing.JSON, INTEGERS)


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.dictionaries(st.sampled_from(sorted(INDEX)), VALUES, min_size=1), fuzzing.JSON))
@example({"image_size": 10**4000, "stride": 1})
@example({"version": "1" * 10**6})
@example({"crc32": {TOKENS_FILE: "1" * 10**6}})
def test_any_index(entries: object) -> None:
    index = {**INDEX, **entries} if isinstance(entries, dict) else entries
    check({**OURS, INDEX_FILE: json.dumps(index).encode()})


def test_small_files_take_little_memory_and_time(tmp_path: Path) -> None:
    hostile = {
        "brackets": (INDEX_FILE, b"[" * 10**6),
        "number": (INDEX_FILE, b'{"format": ' + b"9" * 10**6 + b"}"),
        "huge": (INDEX_FILE, json.dumps({**INDEX, "num_images": 10**12}).encode()),
        "trillion": (TOKENS_FILE, fuzzing.claiming("<u2", "(1000000000000, 2, 16)")),
        "labels": (LABELS_FILE, fuzzing.claiming("<i4", "(1000000000000,)")),
        "header": (TOKENS_FILE, fuzzing.npy("(" * 9000)),
    }
    for case, (name, content) in hostile.items():
        (tmp_path / case).mkdir()
        unpack({**OURS, name: content}, tmp_path / case)
    imports, paths = "from dataset.token_cache import open_cache", sorted(tmp_path.iterdir())
    assert len(fuzzing.read_confined(imports, "open_cache(path)", *paths)) == len(hostile)
