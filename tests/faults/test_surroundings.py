"""Odd names, jobs that meet, clocks that go wrong."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from dataset.write_cache import RECORD_FILE
from orders.order_file import write_orders
from tests.faults.conftest import SHARD, Start, Whole, same_cache
from tests.integration.test_resume import logged, same_training, wait_for
from tests.integration.test_resume import start as launch
from tests.integration.tiny_world import TinyWorld, write_images
from training.checkpoint import LAST, PREVIOUS

pytestmark = pytest.mark.slow

ODD = "two  words 'n é 数据 \N{SNAKE} \n%s"
# Data sets come from anywhere: a byte that is no UTF-8.
ODDER = ODD + os.fsdecode(b"\xe9")


def test_odd_paths(world: TinyWorld, trained: Whole, tmp_path: Path, start: Start) -> None:
    """Paths with spaces, quotes, unicode, a line break; images whose names are no text."""
    root = tmp_path / ODD
    root.mkdir()
    tokenizer = Path(shutil.copy(world.tokenizer, root / f"{ODD}.pt"))
    checkpoint = shutil.copy(world.checkpoint, root / f"{ODD}.pth")
    write_images(root / "data", (f"a {ODDER}", f"b {ODDER}"), 40)
    first = root / "data" / f"a {ODDER}"
    (first / "000.png").rename(first / f"{ODDER}.png")
    paths = ["--vqgan_path", tokenizer, "--data_path", root / "data"]
    sizes = ["--img_size", 16, "--batch_size", 4, "--num_workers", 0, "--device", "cpu"]
    start("main_cache", [*paths, *sizes, "--cached_path", root / "cache"]).succeeds()

    more = ["--vqgan_path", tokenizer, "--cached_path", root / "cache", "--epochs", 1]
    output = root / "trained"
    start("main_lpd", trained.flags(output, *more, "--pretrained_ckpt", checkpoint)).succeeds()
    assert (output / LAST).exists() and logged(output)["train/loss"]

    orders = root / f"{ODD}.npy"
    write_orders(orders, np.tile(np.arange(16), (9, 1)))
    flags = [*world.eval_flags(root / "samples"), "--vqgan_path", tokenizer, "--save_npz"]
    flags += ["--pretrained_ckpt", output / LAST, "--order", "lpd", "--lpd_order_file", orders]
    start("main_lpd", flags).succeeds()
    assert len(list((root / "samples" / "images").iterdir())) == 9
    assert (root / "samples" / "samples.npz").exists()

    line = start("main_lpd", [*flags, "--lpd_order_file", root / f"no {ODD}.npy"]).is_refused()
    assert "--lpd_order_file" in line and "数据" in line


def test_two_jobs_cache_to_one_folder(cached: Whole, tmp_path: Path, start: Start) -> None:
    output = tmp_path / "cache"
    first = start("main_cache", cached.flags(output), shard_images=SHARD)
    first.wait_for((output / RECORD_FILE).exists)
    first.signal(signal.SIGSTOP)
    assert first.running
    line = start("main_cache", cached.flags(output), shard_images=SHARD).is_refused()
    first.signal(signal.SIGCONT)
    first.succeeds()
    assert "is in use by another run (process " in line
    assert same_cache(output, cached.folder)


# Found by the interpreter at its start: the time of day runs backwards, ten times as fast.
BACKWARDS = """
import time
real, begin = time.time, {begin}
started = real()
time.time = lambda: begin - 10 * (real() - started)
time.time_ns = lambda: int(1e9 * time.time())
"""


def test_the_clock_runs_backwards_and_a_resumed_run_begins_an_hour_before(
    trained: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "trained"
    flags = trained.flags(output, "--save_steps", 5)
    for begin in (1.7e9, 1.7e9 - 3600):
        clock = tmp_path / str(begin)
        clock.mkdir()
        (clock / "sitecustomize.py").write_text(BACKWARDS.format(begin=begin))
        monkeypatch.setenv("PYTHONPATH", str(clock))
        run = launch(None, "main_lpd.py", *flags)
        if begin == 1.7e9:
            wait_for(lambda: (output / PREVIOUS).exists(), run)
            run.kill()
        _, said = run.communicate()
    assert "resumed from" in said and run.returncode == 0
    assert same_training(output, trained.folder)
