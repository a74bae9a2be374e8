"""Files that were damaged: refused in one line, or replaced by the ones before them."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hub.weights import read_checkpoint
from tests.faults.children import Child
from tests.faults.conftest import Start, Whole
from tests.faults.study import FILES, Study
from tests.integration.test_resume import same_training
from training.checkpoint import LAST, PREVIOUS

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


@pytest.mark.parametrize("damage", [truncate, flip_bit, empty])
def test_the_checkpoint_before_takes_the_place_of_a_damaged_one(
    trained: Whole, tmp_path: Path, start: Start, damage: Callable[[bytes, random.Random], bytes]
) -> None:
    flags = trained.flags(tmp_path, "--save_steps", 4)
    start("main_lpd", [*flags, "--epochs", 1]).succeeds()
    content = (tmp_path / LAST).read_bytes()
    # All but the end, where a zip file repeats names and sizes, of which some are not used.
    body, end = content[: -len(content) // 10], content[-len(content) // 10 :]
    kept = end if damage is flip_bit else b""
    (tmp_path / LAST).write_bytes(damage(body, random.Random(3)) + kept)
    said = start("main_lpd", flags).succeeds()
    assert "the one before it takes its place" in said
    assert f"resumed from {tmp_path / PREVIOUS}" in said
    assert same_training(tmp_path, trained.folder)
