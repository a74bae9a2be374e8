"""One file of every kind that the commands read."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from evaluation.digits import DigitsClassifier
from evaluation.metrics import Statistics, save_reference
from hub.weights import atomic_save
from models.lpd import lpd_tiny
from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders
from orders.order_file import write_orders
from tests.integration.tiny_world import CLASSES, GRID, TinyWorld

IMAGES, STEPS = 6, 6
FILES = {
    "--pretrained_ckpt": "checkpoint.pth",
    "--vqgan_path": "tokenizer.pt",
    "--feature_extractor_weights": "classifier.pth",
    "--fid_stats": "statistics.npz",
}


@dataclass(frozen=True)
class Study:
    """The flags of commands that read the files of a folder."""

    folder: Path
    world: TinyWorld

    def training(self, output: Path) -> list[object]:
        cache = ["--cached_path", self.folder / "cache", "--epochs", 1]
        return [*self.world.train_flags(output), *cache]

    def evaluation(self, output: Path, orders: str = "orders.json") -> list[object]:
        flags = [*self.world.eval_flags(output), "--img_size", 32, "--num_images", IMAGES]
        flags += ["--generation_steps", STEPS, "--order", "lpd", "--feature_extractor", "digits"]
        files = {**FILES, "--lpd_order_file": orders}
        return flags + [part for flag, name in files.items() for part in (flag, self.folder / name)]


def write_study(folder: Path, world: TinyWorld) -> Study:
    """Random networks for 32 px, what the digits classifier takes, and what goes with them."""
    shutil.copy(world.tokenizer, folder / "tokenizer.pt")
    shutil.copytree(world.cache, folder / "cache")
    torch.manual_seed(4)
    sizes = {"vqgan_stride": GRID.stride, "vqgan_vocab_size": GRID.vocab_size}
    model = lpd_tiny(img_size=32, class_num=CLASSES, **sizes)
    classifier = DigitsClassifier()
    for parameter in [*model.parameters(), *classifier.parameters()]:
        torch.nn.init.normal_(parameter, std=0.2)
    atomic_save({"model": model.state_dict()}, folder / "checkpoint.pth")
    atomic_save({"model": classifier.state_dict()}, folder / "classifier.pth")
    orders = locality_aware_orders(IMAGES, group_sizes(64, STEPS), grid_size=8, seed=1)
    for suffix in (".json", ".npy"):
        write_orders(folder / f"orders{suffix}", orders)
    save_reference({"pool": Statistics(np.zeros(64), np.eye(64))}, folder / "statistics.npz")
    return Study(folder, world)
