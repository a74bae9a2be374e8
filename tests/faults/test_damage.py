"""Files that were damaged: refused in one line, or replaced by the ones before them."""

import random
import shutil
from pathlib import Path

import pytest

from hub.weights import read_checkpoint
from tests.faults.children import Child
from tests.faults.conftest import Start
from tests.faults.study import FILES, Study
from training.checkpoint import LAST

pytestmark = pytest.mark.slow


def truncate(content: bytes, draws: random.Random) -> bytes:
    return content[: draws.randrange(1, len(content))]


def flip_bit(content: bytes, draws: random.Random) -> bytes:
    flipped = bytearray(content)
    flipped[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    return bytes(flipped)


def empty(content: bytes, draws: random.Random) -> bytes:
    return b""


def result(output: Path) -> dict[str, object]:
    """What came of a training run or an evaluation, to be compared."""
    if (output / LAST).exists():
        weights = read_checkpoint(output / LAST, "test")["model"]
        return {name: value.numpy().tobytes() for name, value in weights.items()}
    scores = (output / "metrics.json").read_text().splitlines()
    images = {path.name: path.read_bytes() for path in (output / "images").iterdir()}
    return {"scores": [line for line in scores if '"checkpoint"' not in line], **images}


NAMES = (*FILES.values(), "orders.json", "orders.npy")
NAMES += ("cache/cache-tokens.npy", "cache/cache-labels.npy", "cache/index.json")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_truncated_empty_or_with_a_flipped_bit_is_refused(
    study: Study, tmp_path: Path, start: Start, long: bool, name: str
) -> None:
    def read(files: Study, output: Path) -> Child:
        if name.startswith("cache/"):
            return start("main_lpd", files.training(output))
        orders = name if name.startswith("orders") else "orders.json"
        return start("main_lpd", files.evaluation(output, orders))

    draws = random.Random(name)
    for number, damage in enumerate((truncate, empty, *[flip_bit] * (10 if long else 2))):
        output = tmp_path / f"output-{number}"
        damaged = Study(shutil.copytree(study.folder, tmp_path / f"study-{number}"), study.world)
        file = damaged.folder / name
        file.write_bytes(damage(file.read_bytes(), draws))
        child = read(damaged, output)
        if damage is flip_bit and child.code == 0:  # a bit that means nothing
            read(study, tmp_path / "right").succeeds()
            assert result(output) == result(tmp_path / "right")
            continue
        line = child.is_refused()
        assert str(file) in line or f"{file.parent} was made" in line, line
        assert not list(output.glob("*"))
