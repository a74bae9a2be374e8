"""Every script of scripts/eval/ and scripts/train/, run with tiny weights on a CPU.

Image sizes, steps, order files, guidance and the tokenizer's stride are the published ones; the
networks and the number of images and classes are not.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.write_cache import write_index, write_shard
from hub.weights import atomic_save, read_checkpoint
from models.lpd import lpd_tiny
from orders.run_lpd_order import main as make_orders
from tests.commands import ROOT, run_program
from tokenizers.vq_model import VQModel, fingerprint, save_tokenizer
from util.geometry import TokenGrid

pytestmark = pytest.mark.slow

CLASSES = 2
CODES = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of the published stride; weights and a token cache for both image sizes."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    tokenizer = VQModel(
        codebook_size=CODES,
        codebook_embed_dim=4,
        ch=32,
        encoder_ch_mult=(1, 1, 1, 1, 1),
        decoder_ch_mult=(1, 1, 1, 1, 1),
        num_res_blocks=1,
        z_channels=32,
    )
    save_tokenizer(folder / "vq.pt", tokenizer)
    for size in (256, 512):
        grid = TokenGrid(size, tokenizer.stride, CODES)
        model = lpd_tiny(
            img_size=size, vqgan_stride=grid.stride, vqgan_vocab_size=CODES, class_num=CLASSES
        )
        atomic_save({"model": model.state_dict()}, folder / f"lpd_{size}.pth")
        cache = folder / f"cache_{size}"
        cache.mkdir()
        tokens = np.random.default_rng(size).integers(CODES, size=(4, 2, grid.num_tokens))
        shard = write_shard(cache, 0, tokens, np.arange(4) % CLASSES, CODES)
        write_index(cache, grid, fingerprint(tokenizer), ("ant", "bee"), [shard])
    return folder


def run_script(script: Path, output: Path, folder: Path, *flags: object, **variables: str) -> str:
    """Start a script with tiny things instead of the published ones; its log."""
    done = run_program(
        *("bash", script, "--model", "lpd_tiny", "--class_num", CLASSES, *flags),
        timeout=600,
        VQGAN_PATH=str(folder / "vq.pt"),
        OUTPUT_DIR=str(output),
        NPROC_PER_NODE="1",
        DEVICE="cpu",
        **variables,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.parametrize(
    "script", sorted((ROOT / "scripts" / "eval").iterdir()), ids=lambda p: p.stem
)
def test_evaluation(script: Path, folder: Path, tmp_path: Path) -> None:
    size = 512 if "res512" in script.stem else 256
    steps = int(script.stem.rpartition("steps")[2])
    orders = tmp_path / "orders.json"
    grid = ["--img_size", str(size), "--generation_steps", str(steps)]
    make_orders([*grid, "--num_runs", "2", "--output_file", str(orders)])
    run_script(
        *(script, tmp_path / "out", folder, "--feature_extractor", "none"),
        PRETRAINED_CKPT=str(folder / f"lpd_{size}.pth"),
        LPD_ORDER_FILE=str(orders),
        NUM_IMAGES="2",
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["steps"], metrics["order"], metrics["num_images"]) == (steps, "lpd", 2)
    for name in ("00000.png", "00001.png"):
        with Image.open(tmp_path / "out" / "images" / name) as image:
            assert image.size == (size, size)
            assert len(np.unique(np.asarray(image))) > 10


@pytest.mark.parametrize(
    "script", sorted((ROOT / "scripts" / "train").iterdir()), ids=lambda p: p.stem
)
def test_recipe(script: Path, folder: Path, tmp_path: Path) -> None:
    size = int(script.stem.rpartition("_")[2])
    flags = ["--batch_size", 2, "--epochs", 1, "--warmup_epochs", 0, "--log_every", 1]
    variables = {
        "CACHED_PATH": str(folder / f"cache_{size}"),
        "PRETRAINED_CKPT": str(folder / "lpd_256.pth"),
    }
    out = tmp_path / "out"
    log = run_script(script, out, folder, *flags, **variables)
    assert "epoch 0 of 1: loss" in log
    checkpoint = read_checkpoint(out / "checkpoint-last.pth", "--resume")
    assert checkpoint["args"]["model"] == "lpd_tiny"
    assert checkpoint["model"]["pos_embed"].shape[1] == (size // 16) ** 2 + 1
    if size == 512:  # they began as the 256 px weights
        begun = read_checkpoint(folder / "lpd_256.pth", "")["model"]["token_emb.weight"]
        assert (checkpoint["model"]["token_emb.weight"] - begun).abs().max() < 0.01
