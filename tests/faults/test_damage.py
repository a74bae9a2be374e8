"""Files that were damaged: refused in one line, or replaced by the ones before them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from hub.weights import read_checkpoint
from tests.faults.children import Child
from tests.faults.conftest import Fault, Start, Whole
from tests.faults.study import Study
from tests.integration.test_resume import same_training
from training.checkpoint import LAST, PREVIOUS

pytestmark = pytest.mark.slow

Damage = Callable[[bytes, random.Random], bytes]


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


NAMES = ("checkpoint.pth", "tokenizer.pt", "classifier.pth", "statistics.npz")
NAMES += ("orders.json", "orders.npy")
NAMES += ("cache/cache-tokens.npy", "cache/cache-labels.npy", "cache/index.json")


@pytest.mark.parametrize("name", NAMES)
def test_file(
    study: Study, tmp_path: Path, start: Start, fault: Fault, long: bool, name: str
) -> None:
    """File truncated, empty, with a flipped bit"""

    def read(files: Study, output: Path) -> Child:
        if name.startswith("cache/"):
            return start("main_lpd", files.training(output))
        orders = name if name.startswith("orders") else "orders.json"
        return start("main_lpd", files.evaluation(output, orders))

    draws = random.Random(name)
    refused = 0
    for damage in (truncate, empty, *[flip_bit] * (10 if long else 2)):
        fault.tries += 1
        output = tmp_path / f"output-{fault.tries}"
        damaged = study.copy(tmp_path / f"study-{fault.tries}")
        file = damaged.folder / name
        file.write_bytes(damage(file.read_bytes(), draws))
        child = read(damaged, output)
        if damage is flip_bit and child.code == 0:  # a bit that means nothing
            read(study, tmp_path / "right").succeeds()
            assert result(output) == result(tmp_path / "right")
            continue
        refused += 1
        line = child.is_refused()
        assert str(file) in line or f"{file.parent} was made" in line, line
        assert not list(output.glob("*"))
    harmless = fault.tries - refused
    fault.ended = f"{refused} in one line" + f", {harmless} without effect" * (harmless > 0)


@pytest.mark.parametrize("damage", [truncate, flip_bit, empty])
def test_newest_checkpoint(
    trained: Whole, tmp_path: Path, start: Start, fault: Fault, damage: Damage
) -> None:
    """Newest checkpoint of a run damaged"""
    flags = trained.flags(tmp_path, "--save_steps", 4)
    start("main_lpd", [*flags, "--epochs", 1]).succeeds()
    last = tmp_path / LAST
    content = last.read_bytes()
    # All but the end, where a zip file repeats names and sizes, of which some are not used.
    body, end = content[: -len(content) // 10], content[-len(content) // 10 :]
    last.write_bytes(damage(body, random.Random(3)) + (end if damage is flip_bit else b""))
    said = start("main_lpd", flags).succeeds()
    assert "the one before it takes its place" in said
    assert f"resumed from {tmp_path / PREVIOUS}" in said
    assert same_training(tmp_path, trained.folder)
    fault.tries = 1
    fault.ended = "a warning; the one before it taken: same bits, same curves"
