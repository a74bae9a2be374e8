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
    """What to generate.

    Attributes:
        label: class, from 0.
        count: images, 1..MAX_IMAGES; they have the ids 0, 1, ...
        seed: names the random streams.
        steps: decoding steps of a whole image, K.
        sampling: how codes are drawn.
    """

    label: int
    count: int
    seed: int
    steps: int
    sampling: SamplingSettings


def read_settings(fields: Mapping[str, Any], names: Sequence[str], grid: TokenGrid) -> Settings:
    """Check what a visitor has entered.

    Args:
        fields: `label` (a class by number or name), `count`, `seed`, `steps`, `cfg`,
            `temperature`, `top_k` and `top_p`, as the page has them: None where a field is empty.
        names: of all classes.
        grid: of the model.

    Raises:
        ValueError: one of them cannot be; one sentence that begins with the field's label.
    """
    try:
        (label,) = parse_classes(
            ["" if fields["label"] is None else str(fields["label"]).strip()], names
        )
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
    """A field that must hold a number.

    Raises:
        ValueError: it holds another, or none.
    """
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
