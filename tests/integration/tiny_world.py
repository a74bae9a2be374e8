"""The smallest set of real files a run needs: tokenizer, token cache, model checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dataset.write_cache import write_index, write_shard
from hub.weights import atomic_save
from models.lpd import lpd_tiny
from tokenizers.vq_model import VQModel, fingerprint, save_tokenizer
from util.geometry import TokenGrid

CLASSES = 3
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


def tiny_tokenizer(seed: int = 0) -> VQModel:
    torch.manual_seed(seed)
    size = dict(codebook_size=GRID.vocab_size, codebook_embed_dim=4, ch=32, z_channels=32)
    return VQModel(**size, encoder_ch_mult=(1, 1, 1), decoder_ch_mult=(1, 1, 1), num_res_blocks=1)


def build_world(folder: Path) -> TinyWorld:
    """Write a random tokenizer, a cache of 48 random images and a random checkpoint."""
    world = TinyWorld(folder, folder / "vq.pt", folder / "cache", folder / "lpd.pth")
    tokenizer = tiny_tokenizer()
    save_tokenizer(world.tokenizer, tokenizer)
    draws = np.random.default_rng(0)
    tokens = draws.integers(GRID.vocab_size, size=(48, 2, GRID.num_tokens))
    world.cache.mkdir()
    labels = np.repeat(np.arange(CLASSES), 16)
    shard = write_shard(world.cache, 0, tokens, labels, GRID.vocab_size)
    names = [f"class{label}" for label in range(CLASSES)]
    write_index(world.cache, GRID, fingerprint(tokenizer), names, [shard])
    torch.manual_seed(1)
    model = lpd_tiny(img_size=16, vqgan_stride=4, vqgan_vocab_size=32, class_num=CLASSES)
    for parameter in model.parameters():  # the initial network is too uniform to compare with
        torch.nn.init.normal_(parameter, std=0.2)
    atomic_save({"model": model.state_dict()}, world.checkpoint)
    return world
