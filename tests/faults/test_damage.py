"""Files that were damaged: refused in one line, or replaced by the ones before them."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.digits import DigitsClassifier
from evaluation.metrics import Statistics, save_reference
from hub.weights import atomic_save, read_checkpoint
from models.lpd import lpd_tiny
from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders
from orders.order_file import write_orders
from tests.faults.conftest import Start
from tests.integration.tiny_world import CLASSES, GRID, TinyWorld
from training.checkpoint import LAST

pytestmark = pytest.mark.slow

IMAGES, STEPS = 6, 6
FILES = {
    "--pretrained_ckpt": "checkpoint.pth",
    "--vqgan_path": "tokenizer.pt",
    "--feature_extractor_weights": "classifier.pth",
    "--fid_stats": "statistics.npz",
}
ORDERS = ("orders.json", "orders.npy")
CACHE = ("cache/cache-tokens.npy", "cache/cache-labels.npy", "cache/index.json")


@pytest.fixture(scope="module")
def study(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random networks for 32 px, what the digits classifier takes, and what goes with them."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copy(world.tokenizer, folder / "tokenizer.pt")
    shutil.copytree(world.cache, folder / "cache")
    torch.manual_seed(4)
    sizes = {"vqgan_stride": GRID.stride, "vqgan_vocab_size": GRID.vocab_size}
    model = lpd_tiny(img_size=32, class_num=CLASSES, **sizes)
    for name, network in (("checkpoint", model), ("classifier", DigitsClassifier())):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        atomic_save({"model": network.state_dict()}, folder / f"{name}.pth")
    orders = locality_aware_orders(IMAGES, group_sizes(64, STEPS), grid_size=8, seed=1)
    for name in ORDERS:
        write_orders(folder / name, orders)
    save_reference({"pool": Statistics(np.zeros(64), np.eye(64))}, folder / "statistics.npz")
    return folder


def flags(world: TinyWorld, folder: Path, name: str, output: Path) -> list[object]:
    """Of a command that reads this file of the folder."""
    if name in CACHE:
        return [*world.train_flags(output), "--cached_path", folder / "cache", "--epochs", 1]
    line = [*world.eval_flags(output), "--img_size", 32, "--num_images", IMAGES, "--order", "lpd"]
    line += ["--generation_steps", STEPS, "--feature_extractor", "digits"]
    files = {**FILES, "--lpd_order_file": name if name in ORDERS else ORDERS[0]}
    return line + [part for flag, file in files.items() for part in (flag, folder / file)]


def truncate(content: bytes, draws: random.Random) -> bytes:
    return content[: draws.randrange(1, len(content))]


def flip_bit(content: bytes, draws: random.Random) -> bytes:
    flipped = bytearray(content)
    flipped[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    return bytes(flipped)


def empty(content: bytes, draws: random.Random) -> bytes:
    return b""


def result(output: Path) -> dict[str, object]:
    """What came of a training run or an evaluation, to be compared."""
    if (output / LAST).exists():
        weights = read_checkpoint(output / LAST, "test")["model"]
        return {name: value.numpy().tobytes() for name, value in weights.items()}
    scores = (output / "metrics.json").read_text().splitlines()
    images = {path.name: path.read_bytes() for path in (output / "images").iterdir()}
    return {"scores": [line for line in scores if '"checkpoint"' not in line], **images}


@pytest.mark.parametrize("name", [*FILES.values(), *ORDERS, *CACHE])
def test_a_file_truncated_empty_or_with_a_flipped_bit_is_refused(
    study: Path, world: TinyWorld, tmp_path: Path, start: Start, long: bool, name: str
) -> None:
    draws = random.Random(name)
    for number, damage in enumerate((truncate, empty, *[flip_bit] * (10 if long else 2))):
        output = tmp_path / f"output-{number}"
        folder = shutil.copytree(study, tmp_path / f"study-{number}")
        file = folder / name
        file.write_bytes(damage(file.read_bytes(), draws))
        child = start("main_lpd", flags(world, folder, name, output))
        if damage is flip_bit and child.code == 0:  # a bit that means nothing
            right = tmp_path / "right"
            start("main_lpd", flags(world, study, name, right)).succeeds()
            assert result(output) == result(right)
            continue
        line = child.is_refused()
        assert str(file) in line or f"{file.parent} was made" in line, line
        assert not list(output.glob("*"))
