"""The demo's whole pipeline in miniature, through its own script, on two processes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.commands import ROOT, run_program, succeed


@pytest.mark.slow
def test_demo_in_miniature(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = run_program(
        *("bash", ROOT / "scripts" / "demo.sh"),
        timeout=900,
        OUT=str(out),
        VQ_EPOCHS="1",
        EPOCHS="2",
        NUM_IMAGES="100",
        HELD_OUT="40",
        PROCESSES="2",
    )
    assert result.returncode == 0, result.stderr[-3000:]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["steps"] == 12 and metrics["num_images"] == 100
    assert metrics["class_accuracy_real_test"] == pytest.approx(0.989, abs=0.005)
    assert 0 <= metrics["class_accuracy_generated"] <= 1
    assert metrics["frechet_distance_digits"] > 0
    assert "fid" not in metrics
    assert np.asarray(Image.open(out / "samples.png")).shape[:2] == (338, 338)
    costs = json.loads((out / "nll.json").read_text())
    assert "| 12 | raster |" in result.stdout and costs["num_images"] == 40
    assert (out / "nll.png").stat().st_size > 5000
    assert len(list((out / "images").glob("*.png"))) == 100
    assert (out / "checkpoint-last.pth").exists() and (out / "tokenizer" / "vq.pt").exists()
    events = EventAccumulator(str(out))
    events.Reload()
    assert len(events.Scalars("epoch/loss")) == 2
    assert "FID" not in result.stderr
    assert "; expected " not in result.stderr  # no warning of flags that do not go together
    check_edits(out)


def check_edits(demo: Path) -> None:
    """Made anew, a lower half says more of a digit's class than black does."""
    files = ["--pretrained_ckpt", demo / "checkpoint-last.pth", "--output", demo / "edits.json"]
    files += ["--vqgan_path", demo / "tokenizer" / "vq.pt", "--data", demo / "data"]
    flags = ["--num_images", 50, "--cfg", 2, "--grid", demo / "edits.png"]
    succeed("scripts/evidence/digit_edits.py", *files, *flags)
    found = json.loads((demo / "edits.json").read_text())
    assert found["num_images"] == 50 and found["cfg"] == 2
    assert found["class_accuracy_real"] > 0.95  # all digits: spread over the sorted list
    assert found["class_accuracy_reconstructed"] > 0.9
    parts = {entry["part"]: entry for entry in found["results"]}
    halves = dict.fromkeys(("lower half", "upper half", "left half", "right half"), 32)
    assert {name: part["tokens"] for name, part in parts.items()} == halves | {
        **{"centre": 16, "all": 64}
    }
    half = parts["lower half"]
    assert half["class_accuracy"] > half["class_accuracy_black"] + 0.2
    # A black picture is every digit to the judge, who then is right once in ten.
    assert parts["all"]["class_accuracy_black"] == pytest.approx(0.1)
    grid = np.asarray(Image.open(demo / "edits.png"))
    assert grid.shape == (12 * 34 - 2, 10 * 34 - 2, 3)
    assert grid[16:32, :32].max() == 0 and grid[:16, :32].max() > 0  # the lower half, black
    centre = grid[8 * 34 :][:32, :32]
    assert centre[8:24, 8:24].max() == 0 and centre[:8].max() > 0
