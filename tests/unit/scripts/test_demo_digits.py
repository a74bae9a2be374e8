"""The demo's digits: the data set, its feature extractor and the judge of its samples."""

import itertools
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from evaluation.features import build_extractor
from scripts import demo_digits
from tests.commands import opens_anywhere
from util.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    demo_digits.main(["prepare", "--output", str(folder)])
    return folder


@pytest.fixture
def samples(data: Path, tmp_path: Path) -> Path:
    """Real test images posing as 30 generated ones of each class."""
    folder = tmp_path / "samples"
    folder.mkdir()
    digits = [sorted((data / "test" / str(digit)).iterdir())[:30] for digit in range(10)]
    for number, path in enumerate(itertools.chain(*digits)):
        shutil.copy(path, folder / f"{number:05d}.png")
    return folder


def report(data: Path, samples: Path, folder: Path) -> dict[str, float]:
    files = f"--metrics {folder}/metrics.json --grid {folder}/grid.png"
    demo_digits.main(f"report --data {data} --samples {samples} {files}".split())
    return json.loads((folder / "metrics.json").read_text())


def test_prepare_writes_the_split_of_enlarged_digits(data: Path) -> None:
    digits, numbers = load_digits(), []
    assert sorted(path.name for path in data.iterdir()) == ["test", "train"]
    for part, count in (("train", 1437), ("test", 360)):
        paths = sorted((data / part).glob("*/*.png"))
        assert len(paths) == count
        assert all(digits.target[int(path.stem)] == int(path.parent.name) for path in paths)
        numbers += [int(path.stem) for path in paths]
    assert sorted(numbers) == list(range(1797))
    pixels = np.asarray(Image.open(data / "train" / "3" / "0003.png"))
    assert pixels.shape == (32, 32, 3) and np.array_equal(pixels[..., 0], pixels[..., 2])
    again = demo_digits.to_digits(torch.tensor(pixels).permute(2, 0, 1)[None])[0]
    assert np.abs(again - digits.data[3]).mean() < 1  # of 16 grey levels


def test_report_on_real_digits(data: Path, samples: Path, tmp_path: Path, caplog) -> None:
    (tmp_path / "metrics.json").write_text('{"num_images": 300}')
    caplog.set_level(logging.INFO)
    metrics = report(data, samples, tmp_path)
    assert list(metrics) == ["num_images", "class_accuracy_generated", "class_accuracy_real_test"]
    assert metrics["class_accuracy_generated"] > 0.97
    assert metrics["class_accuracy_real_test"] == pytest.approx(0.989, abs=0.003)
    assert "of 300 generated digits, 98.9 % of the real test digits" in caplog.text
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (10 * 32 + 9 * 2, 10 * 32 + 9 * 2, 3)
    fourth_of_class_2 = Image.open(samples / "00063.png")
    assert np.array_equal(grid[68:100, 102:134], fourth_of_class_2)
    # Labels follow from the order: the first class now shows the digit 1.
    for number in range(30):
        shutil.copy(samples / f"{number + 30:05d}.png", samples / f"{number:05d}.png")
    assert 0.87 < report(data, samples, tmp_path)["class_accuracy_generated"] <= 0.9


def test_what_cannot_be_judged_is_refused(data: Path, samples: Path, tmp_path: Path) -> None:
    def refused(message: str, data: Path, folder: Path = samples) -> None:
        with pytest.raises(UserError, match=message):
            report(data, folder, tmp_path)

    metrics = tmp_path / "metrics.json"
    refused(r"^--metrics: .*metrics.json: No such file", data)
    metrics.write_text("{}")
    refused(r"^--samples: .* holds 0 PNG files", data, tmp_path / "absent")
    refused("^--data: .*/no/train does not exist, expected a folder of", tmp_path / "no")
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        shutil.copy(samples / "00000.png", tmp_path / "train" / name)
    refused("^--data: .* holds the classes cat, dog, expected 0, 1, 2, 3", tmp_path)
    (samples / "00299.png").rename(samples / "00300.png")
    refused(r"^--samples: .*00299.png", data)
    (samples / "00300.png").unlink()
    refused(r"^--samples: .* holds 299 PNG files, expected a multiple", data)
    assert metrics.read_text() == "{}" and not (tmp_path / "grid.png").exists()


def test_features_trains_an_extractor(data: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(demo_digits, "EPOCHS", 10)  # of 30: 99.2 %
    caplog.set_level(logging.INFO)
    weights = [tmp_path / name for name in ("a.pt", "b.pt")]
    for output in weights:
        demo_digits.main(["features", "--data", str(data), "--output", str(output)])
    assert float(caplog.text.partition("recognises ")[2].partition(" %")[0]) > 98
    assert opens_anywhere(weights[0]) and weights[0].read_bytes() == weights[1].read_bytes()
    assert build_extractor("digits", str(weights[0]), torch.device("cpu")) is not None
