"""What the fields of the page may hold."""

import math
from typing import Any

import pytest

from app.settings import Settings, read_settings
from models.sampling import SamplingSettings
from tests.integration.tiny_world import GRID

NAMES = ["cat", "dog", "great white shark"]
FIELDS = {"label": "1", "count": 4, "seed": 0, "steps": 5, "cfg": 3}
FIELDS |= {"temperature": 1, "top_k": 0, "top_p": 1}


def read(**changes: Any) -> Settings:
    return read_settings({**FIELDS, **changes}, NAMES, GRID)


def test_fields_become_settings() -> None:
    expected = SamplingSettings(cfg=2.5, temperature=0.9, top_k=7, top_p=0.5)
    found = read(cfg=2.5, temperature=0.9, top_k=7.0, top_p=0.5, seed=9, count=16, steps=16)
    assert found == Settings(label=1, count=16, seed=9, steps=16, sampling=expected)
    assert isinstance(found.sampling.top_k, int)
    for text in ("2", 2, " 2 ", "Great White Shark"):
        assert read(label=text).label == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label": "99"}, "Class: found '99', expected 0..2 or the name of one class"),
        ({"label": None}, "Class: found '', expected 0..2 or the name of one class"),
        ({"count": 17}, "Images: found 17, expected a whole number from 1 to 16"),
        ({"seed": 1.5}, "Seed: found 1.5, expected a whole number from 0 to 2147483647"),
        ({"seed": None}, "Seed: found nothing, expected a whole number from 0 to 2147483647"),
        ({"steps": 1}, "Steps: found 1, expected a whole number from 2 to 16"),
        ({"steps": "5"}, "Steps: found '5', expected a whole number from 2 to 16"),
        ({"cfg": math.nan}, "Guidance: found nan, expected a number from 0 to 50"),
        ({"top_k": 33}, "Top-k: found 33, expected a whole number from 0 to 32"),
        ({"top_p": 1.01}, "Top-p: found 1.01, expected a number from 0 to 1"),
        ({"top_p": True}, "Top-p: found True, expected a number from 0 to 1"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        read(**changes)
    assert str(error.value) == sentence
