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


def test_published_files_become_a_cache(tmp_path: Path, monkeypatch, caplog, bars) -> None:
    """Eleven images of three classes in three shards, at first with a bad one in the last."""
    monkeypatch.setattr(write_cache, "MAX_SHARD_IMAGES", 4)
    published, cache, weights = (tmp_path / name for name in ("published", "cache", "vq.pt"))
    save_tokenizer(weights, tiny_tokenizer())
    for number, tokens in enumerate(np.random.default_rng(0).integers(32, size=(11, 2, 16))):
        file = published / f"n{number % 3}" / f"{number:02d}.JPEG.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **dict(zip(("indices", "indices_flip"), tokens, strict=True)))
    flags = ["--published_path", published, "--cached_path", cache, "--vqgan_path", weights]
    flags = [*map(str, flags), "--num_workers", "2"]
    last = published / "n2" / "08.JPEG.npz"
    good = last.read_bytes()
    np.savez(last, indices=np.zeros(16, int), indices_flip=np.full(16, 32))
    with pytest.raises(UserError, match=r"^--published_path: .*n2/08.* expected 16 in \[0, 32"):
        convert_cache.main(flags)
    assert results_in(cache) == []

    last.write_bytes(good)
    caplog.clear()
    convert_cache.main(flags)
    assert (bars[-1].n, bars[-1].total, bars[-1].unit) == (11, 11, "image")
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "is taken to have made these tokens" in warning.getMessage()
    before, after = open_cache(published), open_cache(cache)
    assert after.classes == before.classes == ("n0", "n1", "n2")
    np.testing.assert_array_equal(after.labels, before.labels)
    for flip in (False, True):
        read = [each.read(np.arange(11), np.full(11, flip)) for each in (before, after)]
        np.testing.assert_array_equal(*read)
    check_cache(after, GRID, fingerprint(tiny_tokenizer()), num_classes=3)
