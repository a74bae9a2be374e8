"""All but scoring runs where torch-fidelity is not installed, as on a bare GPU machine."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.commands import ROOT, run_command, succeed
from tests.integration.tiny_world import TinyWorld
from tests.unit.test_layers import IMPORTS

IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "gradio":  # the page's, an extra
            raise
"""


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python whose `import torch_fidelity` fails."""
    folder = tmp_path_factory.mktemp("without")
    folder.joinpath("sitecustomize.py").write_text(
        "import sys\nsys.modules['torch_fidelity'] = None\n"
    )
    return {"PYTHONPATH": str(folder)}


def test_every_module_but_one_can_be_imported(without: dict[str, str]) -> None:
    names = IMPORTS.keys() - {"evaluation.fidelity"}
    assert {"main_lpd", "evaluation.metrics", "scripts.benchmark_training"} <= names
    succeed("-c", IMPORT_ALL, *sorted(names), **without)


def test_training_and_generating_need_no_scores(
    world: TinyWorld, without: dict[str, str], tmp_path: Path
) -> None:
    succeed("main_lpd.py", *world.train_flags(tmp_path), "--epochs", "1", **without)
    assert (tmp_path / "checkpoint-last.pth").is_file()
    succeed("main_lpd.py", *world.eval_flags(tmp_path / "images"), **without)
    images = list((tmp_path / "images").rglob("*.png"))
    assert len(images) == 9
    shared = ["--vqgan_path", world.tokenizer, "--device", "cpu"]
    edit = ["--pretrained_ckpt", world.checkpoint, "--image", images[0], "--box", 0, 0, 8, 8]
    edit += ["--class", 0, "--output_dir", tmp_path / "edit"]
    succeed("scripts/edit.py", *edit, *shared, **without)
    (tmp_path / "classes").mkdir()
    images[0].parent.rename(tmp_path / "classes" / "one")
    cache = ["--data_path", tmp_path / "classes", "--cached_path", tmp_path / "cache"]
    succeed("main_cache.py", *cache, "--img_size", 16, "--num_workers", 0, *shared, **without)


@pytest.mark.parametrize("command", ["main_lpd.py", "scripts/compute_stats.py"])
def test_scoring_says_in_one_line_what_is_missing(
    world: TinyWorld, without: dict[str, str], tmp_path: Path, command: str
) -> None:
    flags = [*world.eval_flags(tmp_path), "--feature_extractor", "inception"]
    if command != "main_lpd.py":
        flags = ["--images", ROOT / "docs", "--out", tmp_path / "stats.npz", "--device", "cpu"]
    result = run_command(command, *flags, **without)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: --feature_extractor: found that torch-fidelity, ")
    assert "pip install torch-fidelity" in line
    assert "Traceback" not in result.stderr


def test_constants_are_torch_fidelitys() -> None:
    defaults = importlib.import_module("torch_fidelity.utils").DEFAULTS
    metrics = importlib.import_module("evaluation.metrics").METRICS
    assert metrics["kid"].fewest_images == defaults["kid_subset_size"]
    assert metrics["prc"].fewest_images == defaults["prc_neighborhood"] + 1
