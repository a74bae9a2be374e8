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
    assert "| 12 | raster |" in result.stdout and costs
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
    files = ["--pretrained_ckpt", demo / "checkpoint-last.pth"]
    files += ["--vqgan_path", demo / "tokenizer" / "vq.pt", "--data", demo / "data"]
    flags = ["--num_images", 100, "--cfg", 2, "--output", demo / "edits.json"]
    succeed("scripts/evidence/digit_edits.py", *files, *flags)
    found = json.loads((demo / "edits.json").read_text())
    half = next(entry for entry in found["results"] if entry["part"] == "lower half")
    assert found["class_accuracy_reconstructed"] > 0.9
    assert half["class_accuracy"] > half["class_accuracy_black"] + 0.2
