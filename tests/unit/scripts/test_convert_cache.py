"""Published per-image token files become a cache with the same tokens and labels."""

import logging
from pathlib import Path

import numpy as np
import pytest

from dataset import write_cache
from dataset.token_cache import check_cache, open_cache
from scripts import convert_cache
from tests.commands import results_in
from tests.integration.tiny_world import GRID, tiny_tokenizer
from tokenizers.vq_model import fingerprint, save_tokenizer
from util.errors import UserError


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tokenizer and the token files of eleven images of three classes, in three shards."""
    monkeypatch.setattr("util.logs.setup", lambda: None)
    monkeypatch.setattr(write_cache, "MAX_SHARD_IMAGES", 4)
    save_tokenizer(tmp_path / "vq.pt", tiny_tokenizer())
    tokens = np.random.default_rng(0).integers(0, GRID.vocab_size, (11, 2, GRID.num_tokens))
    for number, (plain, mirrored) in enumerate(tokens):
        file = tmp_path / "published" / f"n{number % 3}" / f"{number:02d}.JPEG.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, indices=plain, indices_flip=mirrored)
    return tmp_path


def convert(workspace: Path, *more: object) -> None:
    """Run; later flags replace earlier ones."""
    flags = ("--published_path", workspace / "published", "--cached_path", workspace / "cache")
    flags += ("--vqgan_path", workspace / "vq.pt", "--num_workers", 2, *more)
    convert_cache.main([str(flag) for flag in flags])


def test_converted_cache_reads_the_same(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    convert(workspace)
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert "is taken to have made" in caplog.text
    published, cache = open_cache(workspace / "published"), open_cache(workspace / "cache")
    assert cache.classes == published.classes == ("n0", "n1", "n2")
    np.testing.assert_array_equal(cache.labels, published.labels)
    for flip in (False, True):
        found, expected = (x.read(np.arange(11), np.full(11, flip)) for x in (cache, published))
        np.testing.assert_array_equal(found, expected)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        check_cache(cache, GRID, fingerprint(tiny_tokenizer()), num_classes=3)
    assert not caplog.records
    cache.verify()


@pytest.mark.parametrize(
    ("mirrored", "message"),
    [
        ({"indices_flip": np.full(16, 32)}, r"expected 16 in \[0, 32"),
        ({"indices_flip": np.full(16, -1)}, "from -1 to -1"),
        ({}, "cannot be read"),
    ],
)
def test_a_bad_file_is_one_line_and_leaves_nothing(
    workspace: Path, mirrored: dict[str, np.ndarray], message: str
) -> None:
    np.savez(workspace / "published" / "n2" / "08.JPEG.npz", indices=np.zeros(16, int), **mirrored)
    line = rf"^--published_path: .*n2/08\.JPEG\.npz .*{message}[^\n]*$"
    with pytest.raises(UserError, match=line):
        convert(workspace)
    assert results_in(workspace / "cache") == []


def test_bad_flags_raise_before_anything_is_written(workspace: Path) -> None:
    """More cases are in the table of bad input."""
    for flag, value, message in (
        ("--cached_path", "", "not given"),
        ("--vqgan_path", workspace / "no.pt", ".*no.pt does not exist"),
        ("--num_workers", 0, "found '0'"),
    ):
        with pytest.raises(UserError, match=f"^{flag}: {message}"):
            convert(workspace, flag, value)
    assert not (workspace / "cache").exists()
