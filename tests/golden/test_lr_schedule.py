"""The learning rate against numbers of the published release."""

import json
from pathlib import Path

import pytest

from training.recipe import LRSchedule

TABLE = json.loads((Path(__file__).parent / "data" / "lr_schedule.json").read_text())


@pytest.mark.parametrize("values", TABLE["rows"])
def test_learning_rate(values: list) -> None:
    row = dict(zip(TABLE["columns"], values, strict=True))
    epoch, expected = row.pop("epoch"), row.pop("expected_lr")
    schedule = LRSchedule(kind=row.pop("schedule"), **row)
    assert schedule.at(epoch) == pytest.approx(expected, rel=1e-12, abs=1e-18)
