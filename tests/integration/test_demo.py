"""The demo's whole pipeline in miniature, through its own script, on two processes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.commands import ROOT, run_program


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
