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


def convert(workspace: Path) -> None:
    flags = ("--published_path", workspace / "published", "--cached_path", workspace / "cache")
    flags += ("--vqgan_path", workspace / "vq.pt", "--num_workers", 2)
    convert_cache.main([str(flag) for flag in flags])


def test_converted_cache_reads_the_same(workspace: Path, caplog, bars) -> None:
    convert(workspace)
    assert [(bar.n, bar.total, bar.unit) for bar in bars] == [(11, 11, "image")]
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "is taken to have made these tokens" in warning.getMessage()
    published, cache = open_cache(workspace / "published"), open_cache(workspace / "cache")
    assert cache.classes == published.classes == ("n0", "n1", "n2")
    np.testing.assert_array_equal(cache.labels, published.labels)
    for flip in (False, True):
        found, expected = (x.read(np.arange(11), np.full(11, flip)) for x in (cache, published))
        np.testing.assert_array_equal(found, expected)
    check_cache(cache, GRID, fingerprint(tiny_tokenizer()), num_classes=3)


def test_a_bad_file_is_one_line_and_leaves_nothing(workspace: Path) -> None:
    """More cases are in the table of bad input."""
    plain, bad = np.zeros(16, int), workspace / "published" / "n2" / "08.JPEG.npz"
    for mirrored, message in (
        ({"indices_flip": np.full(16, 32)}, r"expected 16 in \[0, 32"),
        ({}, "cannot be read"),
    ):
        np.savez(bad, indices=plain, **mirrored)
        line = rf"^--published_path: .*n2/08\.JPEG\.npz .*{message}[^\n]*$"
        with pytest.raises(UserError, match=line):
            convert(workspace)
        assert results_in(workspace / "cache") == []
