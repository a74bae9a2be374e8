"""Files that would run code if they were read without care."""

import io
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.write_cache import LABELS_FILE, TOKENS_FILE
from tests.faults.conftest import SHARD, Start, Whole, same_cache
from tests.faults.study import FILES, Study
from tests.integration.tiny_world import GRID, TinyWorld
from training.checkpoint import LAST

pytestmark = pytest.mark.slow


class Canary:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mknod, (str(self.path),)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    """It works; whether it has is checked at the end."""
    canary = Canary(tmp_path / "canary")
    pickle.loads(pickle.dumps(canary))
    assert canary.path.exists()
    canary.path.unlink()
    yield canary
    assert not canary.path.exists(), "code of a file was run"


def saved(content: object, **options: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "write",
    [
        saved,
        lambda content: saved(content, _use_new_zipfile_serialization=False),
        pickle.dumps,
    ],
    ids=["torch.save", "torch.save of old", "bare pickle"],
)
def test_pickles_as_checkpoint_tokenizer_and_feature_extractor(
    study: Study, tmp_path: Path, start: Start, canary: Canary, write: Callable[[object], bytes]
) -> None:
    file = tmp_path / LAST
    content = {"model": {"fake_latent": canary}, "optimizer": canary, "epoch": 0}
    file.write_bytes(write(content))
    train, evaluate = study.training(tmp_path / "out"), study.evaluation(tmp_path / "out")
    extractor, inception = "--feature_extractor_weights", ["--feature_extractor", "inception"]
    for flag, *flags in (
        *([flag, *evaluate, flag, file] for flag in FILES if flag != "--fid_stats"),
        *([flag, *train, flag, file] for flag in ("--pretrained_ckpt", "--vqgan_path")),
        [extractor, *evaluate, *inception, extractor, file],
        ["--resume", *train, "--resume", tmp_path],
    ):
        line = start("main_lpd", flags).is_refused()
        assert line.startswith(f"error: {flag}: {file} is not a readable checkpoint"), line


def test_object_arrays_as_statistics_orders_and_caches(
    study: Study, world: TinyWorld, tmp_path: Path, start: Start, canary: Canary
) -> None:
    """Of caches, ours and the published form."""
    objects = np.array([canary], dtype=object)
    statistics, orders = tmp_path / "statistics.npz", tmp_path / "orders.npy"
    np.savez(statistics, mu=objects, sigma=objects)
    np.save(orders, objects)
    given = [("--fid_stats", statistics, statistics), ("--lpd_order_file", orders, orders)]
    for name in (TOKENS_FILE, LABELS_FILE):
        cache = Path(shutil.copytree(world.cache, tmp_path / f"with-{name}"))
        np.save(cache / name, objects)
        given.append(("--cached_path", cache, cache / name))
    published = tmp_path / "published"
    (published / "cat").mkdir(parents=True)
    for number in range(16):
        file, tokens = published / "cat" / f"{number:02d}.npz", np.arange(GRID.num_tokens)
        np.savez(file, indices=tokens, indices_flip=tokens)
    np.savez(file, indices=objects, indices_flip=objects)
    given.append(("--cached_path", published, file))
    for flag, path, named in given:
        flags = world.train_flags if flag == "--cached_path" else study.evaluation
        line = start("main_lpd", [*flags(tmp_path / "out"), flag, path]).is_refused()
        assert line.startswith(f"error: {flag}: {named}"), line


def test_object_arrays_in_a_shard_of_an_unfinished_cache_are_made_again(
    cached: Whole, tmp_path: Path, start: Start, canary: Canary
) -> None:
    output = tmp_path / "cache"
    shard = output / "shard-00000.npz"
    killed = start("main_cache", cached.flags(output), shard_images=SHARD)
    killed.wait_for(shard.exists)
    assert killed.kill()
    objects = np.array([canary], dtype=object)
    np.savez(shard, tokens=objects, labels=objects)
    start("main_cache", cached.flags(output), shard_images=SHARD).succeeds()
    assert same_cache(output, cached.folder)
