"""The learning rate against numbers of the published release."""

import json
from pathlib import Path

import pytest

from training.recipe import LRSchedule

TABLE = json.loads((Path(__file__).parent / "data" / "lr_schedule.json").read_text())


@pytest.mark.parametrize("values", TABLE["rows"])
def test_learning_rate(values: list) -> None:
    row = dict(zip(TABLE["columns"], values, strict=True))
    schedule = LRSchedule(
        kind=row["schedule"],
        lr=row["lr"],
        min_lr=row["min_lr"],
        epochs=row["epochs"],
        warmup_epochs=row["warmup_epochs"],
        lr_decay_start_epoch=row["lr_decay_start_epoch"],
    )
    assert schedule.at(row["epoch"]) == pytest.approx(row["expected_lr"], rel=1e-12, abs=1e-18)
