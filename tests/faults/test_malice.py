"""Files that would run code if they were read without care."""

from __future__ import annotations

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
from tests.faults.conftest import SHARD, Fault, Start, Whole, same_cache
from tests.faults.study import Study
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


FORMS: dict[str, Callable[[object], bytes]] = {
    "torch.save": saved,
    "torch.save of old": lambda content: saved(content, _use_new_zipfile_serialization=False),
    "bare pickle": pickle.dumps,
}


@pytest.mark.parametrize("form", FORMS)
def test_pickle(
    study: Study, tmp_path: Path, start: Start, fault: Fault, canary: Canary, form: str
) -> None:
    """Malicious pickle as checkpoint, tokenizer, feature extractor"""
    content = {"model": {"fake_latent": canary}, "optimizer": canary, "epoch": 0}
    file = tmp_path / LAST
    file.write_bytes(FORMS[form](content))
    train, evaluate = study.training(tmp_path / "out"), study.evaluation(tmp_path / "out")
    for flag, flags in (
        ("--pretrained_ckpt", [*evaluate, "--pretrained_ckpt", file]),
        ("--vqgan_path", [*evaluate, "--vqgan_path", file]),
        ("--feature_extractor_weights", [*evaluate, "--feature_extractor_weights", file]),
        (
            "--feature_extractor_weights",
            [*evaluate, "--feature_extractor", "inception", "--feature_extractor_weights", file],
        ),
        ("--pretrained_ckpt", [*train, "--pretrained_ckpt", file]),
        ("--vqgan_path", [*train, "--vqgan_path", file]),
        ("--resume", [*train, "--resume", tmp_path]),
    ):
        fault.tries += 1
        line = start("main_lpd", flags).is_refused()
        assert line.startswith(f"error: {flag}: {file} is not a readable checkpoint"), line
    fault.ended = "one line; no code was run"


def test_object_arrays_in_an_evaluation(
    study: Study, tmp_path: Path, start: Start, fault: Fault, canary: Canary
) -> None:
    """Arrays of objects as statistics and as order file."""
    objects = np.array([canary], dtype=object)
    np.savez(tmp_path / "statistics.npz", mu=objects, sigma=objects)
    np.save(tmp_path / "orders.npy", objects)
    for flag, file in (
        ("--fid_stats", tmp_path / "statistics.npz"),
        ("--lpd_order_file", tmp_path / "orders.npy"),
    ):
        fault.tries += 1
        flags = [*study.evaluation(tmp_path / "out"), flag, file]
        line = start("main_lpd", flags).is_refused()
        assert line.startswith(f"error: {flag}: {file}"), line
    fault.ended = "one line; no code was run"


def test_object_arrays_in_caches(
    world: TinyWorld, tmp_path: Path, start: Start, fault: Fault, canary: Canary
) -> None:
    """Arrays of objects in caches, ours and the published form."""
    objects = np.array([canary], dtype=object)
    files = []
    for name in (TOKENS_FILE, LABELS_FILE):
        cache = Path(shutil.copytree(world.cache, tmp_path / f"with-{name}"))
        np.save(cache / name, objects)
        files.append(cache / name)
    tokens = np.zeros(GRID.num_tokens, dtype=np.int64)
    for number in range(16):
        file = tmp_path / "published" / "cat" / f"{number:02d}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, indices=tokens, indices_flip=tokens)
    np.savez(file, indices=objects, indices_flip=objects)
    files.append(file)
    for file in files:
        fault.tries += 1
        cache = tmp_path / file.relative_to(tmp_path).parts[0]
        flags = [*world.train_flags(tmp_path / "out"), "--cached_path", cache]
        line = start("main_lpd", flags).is_refused()
        assert line.startswith(f"error: --cached_path: {file}"), line
    fault.ended = "one line; no code was run"


def test_object_arrays_in_a_shard(
    cached: Whole, tmp_path: Path, start: Start, fault: Fault, canary: Canary
) -> None:
    """Arrays of objects in a shard of an unfinished cache."""
    output = tmp_path / "cache"
    shard = output / "shard-00000.npz"
    killed = start("main_cache", cached.flags(output), shard_images=SHARD)
    killed.wait_for(shard.exists)
    assert killed.kill()
    objects = np.array([canary], dtype=object)
    np.savez(shard, tokens=objects, labels=objects)
    start("main_cache", cached.flags(output), shard_images=SHARD).succeeds()
    assert same_cache(output, cached.folder)
    fault.tries = 1
    fault.ended = "made again; no code was run: same bytes"
