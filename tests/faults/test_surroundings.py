"""Odd names, jobs that meet, clocks that go wrong."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from orders.order_file import write_orders
from tests.faults.conftest import Start, Whole, write_images
from tests.integration.test_resume import logged
from tests.integration.tiny_world import TinyWorld
from training.checkpoint import LAST

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
    write_images(root / "data", (f"a {ODDER}", f"b {ODDER}"))
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
