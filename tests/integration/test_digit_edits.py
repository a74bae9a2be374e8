"""The measure of edited digits, with networks that have learned nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hub.weights import atomic_save
from models.lpd import lpd_tiny
from scripts.demo_digits import prepare
from scripts.evidence import digit_edits
from tests.integration.tiny_world import tiny_tokenizer
from tokenizers.vq_model import save_tokenizer


@pytest.mark.slow
def test_it_judges_every_part(tmp_path: Path) -> None:
    prepare(tmp_path / "data")
    save_tokenizer(tmp_path / "vq.pt", tiny_tokenizer())
    torch.manual_seed(0)
    model = lpd_tiny(img_size=32, vqgan_stride=4, vqgan_vocab_size=32, class_num=10)
    atomic_save({"model": model.state_dict()}, tmp_path / "lpd.pth")
    files = {
        "pretrained_ckpt": "lpd.pth",
        "vqgan_path": "vq.pt",
        "data": "data",
        "output": "edits.json",
        "grid": "edits.png",
    }
    flags = [text for name, file in files.items() for text in (f"--{name}", str(tmp_path / file))]
    digit_edits.main(digit_edits.parse_args([*flags, "--num_images", "40", "--cfg", "2"]))
    found = json.loads((tmp_path / "edits.json").read_text())
    assert found["num_images"] == 40 and found["cfg"] == 2
    assert found["class_accuracy_real"] > 0.95  # all digits: spread over the sorted list
    parts = {entry["part"]: entry for entry in found["results"]}
    assert {name: parts[name]["tokens"] for name in parts} == {
        "lower half": 32,
        "upper half": 32,
        "left half": 32,
        "right half": 32,
        "centre": 16,
        "all": 64,
    }
    # A black picture is every digit to the judge, who then is right once in ten.
    assert parts["all"]["class_accuracy_black"] == pytest.approx(0.1)
    assert all(0 <= part["class_accuracy"] <= 1 for part in found["results"])
    grid = np.asarray(Image.open(tmp_path / "edits.png"))
    assert grid.shape == (12 * 34 - 2, 10 * 34 - 2, 3)
    assert grid[16:32, :32].max() == 0 and grid[:16, :32].max() > 0  # the lower half, black


def test_masks_are_those_of_the_parts() -> None:
    assert digit_edits.mask_of(digit_edits.PARTS["lower half"], 4).sum(1).tolist() == [
        *(0, 0),
        *(4, 4),
    ]
    centre = digit_edits.mask_of(digit_edits.PARTS["centre"], 32)
    assert centre.sum() == 256 and centre[8:24, 8:24].all()
