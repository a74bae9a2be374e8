"""What a visitor asks for: the values of the page's fields, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.sampling import SamplingSettings
from util.errors import blame
from util.geometry import TokenGrid
from visualization.class_names import parse_classes

MAX_IMAGES = 16
MAX_PAUSE = 2  # seconds for which a step stays on show


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

    A `ValueError` is one sentence that begins with the field's label.
    """
    wanted = "" if fields["label"] is None else str(fields["label"]).strip()
    with blame("Class"):
        (label,) = parse_classes([wanted], names)
    fewest = min(2, grid.num_tokens)
    return Settings(
        label=label,
        count=number("Images", fields["count"], 1, MAX_IMAGES, whole=True),
        seed=number("Seed", fields["seed"], 0, 2**31 - 1, whole=True),
        steps=number("Steps", fields["steps"], fewest, grid.num_tokens, whole=True),
        sampling=SamplingSettings(
            cfg=number("Guidance", fields["cfg"], 0, 50),
            temperature=number("Temperature", fields["temperature"], 0, 100),
            top_k=number("Top-k", fields["top_k"], 0, grid.vocab_size, whole=True),
            top_p=number("Top-p", fields["top_p"], 0, 1),
        ),
    )


def number(field: str, found: Any, lowest: int, highest: int, whole: bool = False) -> float:
    """Check a field that must hold a number; return an int if it must be whole."""
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    # NaN is nowhere.
    if is_number and lowest <= found <= highest and not (whole and found % 1):
        return int(found) if whole else float(found)
    shown = "nothing" if found is None else f"{found!r:.40}"
    kind = "whole number" if whole else "number"
    raise ValueError(f"{field}: found {shown}, expected a {kind} from {lowest} to {highest}")
