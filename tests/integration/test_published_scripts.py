"""Scripts of scripts/eval/ and scripts/train/ of each size, run with tiny weights on a CPU.

Image sizes, steps, order files, guidance and the tokenizer's stride are the published ones; the
networks and the number of images and classes are not. What the other scripts pass on, the unit
tests see.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hub.weights import atomic_save, read_checkpoint
from models.lpd import lpd_tiny
from orders.run_lpd_order import main as make_orders
from tests.commands import ROOT, run_program
from tests.integration.tiny_world import GRID, tiny_tokenizer, write_cache
from tokenizers.vq_model import save_tokenizer
from util.geometry import TokenGrid

pytestmark = pytest.mark.slow

CLASSES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of the published stride; weights and a token cache for both image sizes."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer = tiny_tokenizer(levels=5)
    save_tokenizer(folder / "vq.pt", tokenizer)
    for size in (256, 512):
        grid = TokenGrid(size, tokenizer.stride, GRID.vocab_size)
        sizes = {"vqgan_stride": grid.stride, "vqgan_vocab_size": grid.vocab_size}
        model = lpd_tiny(img_size=size, class_num=CLASSES, **sizes)
        atomic_save({"model": model.state_dict()}, folder / f"lpd_{size}.pth")
        write_cache(folder / f"cache_{size}", grid, tokenizer, np.arange(4) % CLASSES)
    return folder


def run_script(script: str, output: Path, folder: Path, *flags: object, **variables: str) -> str:
    """Start a script with tiny things instead of the published ones; its log."""
    done = run_program(
        *("bash", ROOT / "scripts" / script, "--model", "lpd_tiny", "--class_num", CLASSES),
        *flags,
        timeout=600,
        VQGAN_PATH=str(folder / "vq.pt"),
        OUTPUT_DIR=str(output),
        NPROC_PER_NODE="1",
        DEVICE="cpu",
        **variables,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.parametrize(("size", "steps"), [(256, 20), (256, 32), (512, 48)])
def test_evaluation(size: int, steps: int, folder: Path, tmp_path: Path) -> None:
    orders = tmp_path / "orders.json"
    grid = ["--img_size", str(size), "--generation_steps", str(steps)]
    make_orders([*grid, "--num_runs", "2", "--output_file", str(orders)])
    run_script(
        *(f"eval/lpd_xl_res{size}_steps{steps}.sh", tmp_path / "out", folder),
        *("--feature_extractor", "none"),
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


@pytest.mark.parametrize("size", [256, 512])
def test_recipe(size: int, folder: Path, tmp_path: Path) -> None:
    out, begun = tmp_path / "out", folder / "lpd_256.pth"
    flags = ["--batch_size", 2, "--epochs", 1, "--warmup_epochs", 0, "--log_every", 1]
    variables = {"CACHED_PATH": str(folder / f"cache_{size}"), "PRETRAINED_CKPT": str(begun)}
    log = run_script(f"train/lpd_xl_{size}.sh", out, folder, *flags, **variables)
    assert "epoch 0 of 1: loss" in log
    checkpoint = read_checkpoint(out / "checkpoint-last.pth", "--resume")
    assert checkpoint["args"]["model"] == "lpd_tiny"
    assert checkpoint["model"]["pos_embed"].shape[1] == (size // 16) ** 2 + 1
    if size == 512:  # it began as the 256 px weights
        before = read_checkpoint(begun, "")["model"]["token_emb.weight"]
        assert (checkpoint["model"]["token_emb.weight"] - before).abs().max() < 0.01
