"""All but scoring runs where torch-fidelity is not installed, as on a bare GPU machine."""

import pytest

from tests.commands import ROOT, run_command, succeed
from tests.unit.test_layers import IMPORTS


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """The environment of a Python whose `import torch_fidelity` fails."""
    folder = tmp_path_factory.mktemp("without")
    folder.joinpath("sitecustomize.py").write_text(
        "import sys\nsys.modules['torch_fidelity'] = None\n"
    )
    return {"PYTHONPATH": str(folder)}


def test_every_module_but_one_can_be_imported(without):
    names = IMPORTS.keys() - {"evaluation.fidelity"}
    assert {"main_lpd", "evaluation.metrics", "scripts.benchmark_training"} <= names
    page = "import sys, unittest.mock as mock; sys.modules['gradio'] = mock.MagicMock()"  # an extra
    succeed("-c", f"{page}; import {', '.join(sorted(names))}", **without)


def test_training_and_generating_need_no_scores(world, without, tmp_path):
    output = tmp_path / "evaluation"
    shared = ["--vqgan_path", world.tokenizer, "--device", "cpu"]
    edit = ["--pretrained_ckpt", world.checkpoint, "--image", output / "images/00000.png"]
    edit += ["--box", 0, 0, 8, 8, "--class", 0, "--output_dir", tmp_path / "edit"]
    cache = ["--data_path", output, "--cached_path", tmp_path / "cache", "--img_size", 16]
    runs = [
        ("main_lpd", [*world.train_flags(tmp_path / "training"), "--epochs", 1]),
        ("main_lpd", world.eval_flags(output)),
        ("scripts.edit", [*edit, *shared]),
        ("main_cache", [*cache, "--num_workers", 0, *shared]),
    ]
    lines = [f"import {name}; {name}.main({[*map(str, flags)]})" for name, flags in runs]
    succeed("-c", "\n".join(lines), **without)
    assert (tmp_path / "training" / "checkpoint-last.pth").is_file()
    assert len(list(output.rglob("*.png"))) == 9


@pytest.mark.parametrize("command", ["main_lpd.py", "scripts/compute_stats.py"])
def test_scoring_says_in_one_line_what_is_missing(world, without, tmp_path, command):
    flags = [*world.eval_flags(tmp_path), "--feature_extractor", "inception"]
    if command != "main_lpd.py":
        flags = ["--images", ROOT / "docs", "--out", tmp_path / "stats.npz", "--device", "cpu"]
    result = run_command(command, *flags, **without)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: --feature_extractor: found that torch-fidelity, ")
    assert "pip install torch-fidelity" in line
    assert "Traceback" not in result.stderr
