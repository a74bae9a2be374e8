"""What a visitor asks for: the values of the page's fields, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.sampling import SamplingSettings
from util.geometry import TokenGrid
from visualization.class_names import parse_classes

MAX_IMAGES = 16
# Browsers can hold larger ones, but nobody wants to type them.
MAX_SEED = 2**31 - 1
MAX_CFG = 50.0
# Seconds for which a step stays on show.
MAX_PAUSE = 2.0


@dataclass(frozen=True)
class Settings:
    """What to generate: `count` images of class `label`, with the ids 0, 1, ..."""

    label: int
    count: int
    seed: int
    steps: int  # of a whole image, K
    sampling: SamplingSettings


def read_settings(fields: Mapping[str, Any], names: Sequence[str], grid: TokenGrid) -> Settings:
    """Check what a visitor has entered, None where a field is empty.

    Raises:
        ValueError: a value cannot be; one sentence that begins with the field's label.
    """
    wanted = "" if fields["label"] is None else str(fields["label"]).strip()
    try:
        (label,) = parse_classes([wanted], names)
    except ValueError as error:
        raise ValueError(f"Class: {error}") from error
    fewest = min(2, grid.num_tokens)
    return Settings(
        label=label,
        count=_whole("Images", fields["count"], 1, MAX_IMAGES),
        seed=_whole("Seed", fields["seed"], 0, MAX_SEED),
        steps=_whole("Steps", fields["steps"], fewest, grid.num_tokens),
        sampling=SamplingSettings(
            cfg=number("Guidance", fields["cfg"], 0, MAX_CFG),
            temperature=number("Temperature", fields["temperature"], 0, 100),
            top_k=_whole("Top-k", fields["top_k"], 0, grid.vocab_size),
            top_p=number("Top-p", fields["top_p"], 0, 1),
        ),
    )


def number(field: str, found: Any, lowest: float, highest: float) -> float:
    """Check a field that must hold a number."""
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if not is_number or not lowest <= found <= highest:  # NaN is nowhere
        raise ValueError(
            f"{field}: found {_shown(found)}, expected a number from {lowest:g} to {highest:g}"
        )
    return float(found)


def _whole(field: str, found: Any, lowest: int, highest: int) -> int:
    try:
        value = number(field, found, lowest, highest)
    except ValueError:
        value = math.nan
    if not value.is_integer():
        raise ValueError(
            f"{field}: found {_shown(found)}, expected a whole number from {lowest} to {highest}"
        )
    return int(value)


def _shown(found: Any) -> str:
    return "nothing" if found is None else f"{found!r:.40}"
