"""The smallest set of real files a run needs: tokenizer, token cache, model checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataset.write_cache import write_index, write_shard
from hub.weights import atomic_save
from models.lpd import lpd_tiny
from tokenizers.vq_model import VQModel, fingerprint, save_tokenizer
from util.geometry import TokenGrid

CLASSES = 3
NAMES = ("class0", "class1", "class2")
GRID = TokenGrid(image_size=16, stride=4, vocab_size=32)


@dataclass(frozen=True)
class TinyWorld:
    """Paths of the files, and the flags that belong to them."""

    folder: Path
    tokenizer: Path
    cache: Path
    checkpoint: Path

    def model_flags(self) -> list[str]:
        return [
            *("--model", "lpd_tiny", "--img_size", "16", "--class_num", str(CLASSES)),
            *("--vqgan_path", str(self.tokenizer), "--device", "cpu"),
        ]

    def train_flags(self, output: Path) -> list[str]:
        return [
            *self.model_flags(),
            *("--use_cached", "--cached_path", str(self.cache), "--group_sizes_list", "auto"),
            *"--lr_schedule constant --warmup_epochs 0 --lr 1e-3 --batch_size 16".split(),
            *("--output_dir", str(output), "--log_dir", str(output), "--log_every", "1"),
        ]

    def eval_flags(self, output: Path) -> list[str]:
        return [
            *self.model_flags(),
            *("--evaluate", "--pretrained_ckpt", str(self.checkpoint)),
            *"--generation_steps 5 --num_images 9 --eval_bsz 4 --feature_extractor none".split(),
            *("--output_dir", str(output), "--log_dir", str(output)),
        ]


def tiny_tokenizer(seed: int = 0, levels: int = 3) -> VQModel:
    torch.manual_seed(seed)
    size = dict(codebook_size=GRID.vocab_size, codebook_embed_dim=4, ch=32, z_channels=32)
    widths = (1,) * levels
    return VQModel(**size, encoder_ch_mult=widths, decoder_ch_mult=widths, num_res_blocks=1)


def write_cache(path: Path, grid: TokenGrid, tokenizer: VQModel, labels: np.ndarray) -> None:
    """A cache of random tokens."""
    path.mkdir()
    shape = (len(labels), 2, grid.num_tokens)
    tokens = np.random.default_rng(0).integers(grid.vocab_size, size=shape)
    shard = write_shard(path, 0, tokens, labels, grid.vocab_size)
    write_index(path, grid, fingerprint(tokenizer), NAMES[: max(labels) + 1], [shard])


def write_images(folder: Path, classes: Sequence[str] = NAMES, count: int = 6) -> None:
    """An image folder of random images of 16 pixels."""
    draws = np.random.default_rng(0)
    for number in range(count):
        file = folder / classes[number % len(classes)] / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(file)


def build_world(folder: Path) -> TinyWorld:
    """Write a random tokenizer, a cache of 48 random images and a random checkpoint."""
    world = TinyWorld(folder, folder / "vq.pt", folder / "cache", folder / "lpd.pth")
    tokenizer = tiny_tokenizer()
    save_tokenizer(world.tokenizer, tokenizer)
    write_cache(world.cache, GRID, tokenizer, np.repeat(np.arange(CLASSES), 16))
    torch.manual_seed(1)
    model = lpd_tiny(img_size=16, vqgan_stride=4, vqgan_vocab_size=32, class_num=CLASSES)
    for parameter in model.parameters():  # the initial network is too uniform to compare with
        torch.nn.init.normal_(parameter, std=0.2)
    atomic_save({"model": model.state_dict()}, world.checkpoint)
    return world
