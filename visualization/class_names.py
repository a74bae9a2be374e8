"""What the classes are called, and classes as users name them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from util.files import open_file

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def read_class_names(spec: str | None, class_num: int) -> list[str]:
    """Read the name of every class.

    Args:
        spec: None for `class 0` ...; `digits` for the demo's; or a file: text with one name a line,
            a JSON list of names, or a JSON object of names by number. Where a JSON has a list in
            the place of a name (`["n01440764", "tench"]`) its last entry counts, and of synonyms
            (`tench, Tinca tinca`) the first.

    Raises:
        ValueError: something else, or names for another number of classes than `class_num`.
    """
    if spec is None:
        return [f"class {label}" for label in range(class_num)]
    if spec == "digits":
        names = list(DIGITS)
    else:
        with open_file(spec) as stream:
            content = stream.read()
        try:
            names = _parse(content.decode("utf-8"), Path(spec).suffix == ".json")
        except ValueError as error:
            raise ValueError(f"{spec}: {error}") from error
    if len(names) != class_num:
        raise ValueError(
            f"{spec} names {len(names)} classes, expected the {class_num} of the model"
        )
    return names


def _parse(text: str, is_json: bool) -> list[str]:
    if not is_json:
        return [_short(line) for line in text.splitlines() if line.strip()]
    expected = "expected a list of names, or names by number"
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"damaged JSON, {expected}") from error
    if isinstance(found, dict):
        numbers = [str(label) for label in range(len(found))]
        if set(found) != set(numbers):
            raise ValueError(f"found keys other than 0..{len(found) - 1}, {expected}")
        found = [found[number] for number in numbers]
    if not isinstance(found, list):
        raise ValueError(f"found {type(found).__name__}, {expected}")
    return [_short(_last(entry)) for entry in found]


def _last(entry: Any) -> str:
    if isinstance(entry, list) and entry:
        entry = entry[-1]
    if not isinstance(entry, str):
        raise ValueError(f"found {entry!r:.40} in the place of a name, expected text")
    return entry


def _short(name: str) -> str:
    """The first of several synonyms; underscores are spaces."""
    return name.split(",")[0].strip().replace("_", " ")


def parse_classes(words: Sequence[str] | None, names: Sequence[str]) -> list[int]:
    """Find classes by number or name; None for all of up to ten, else ten evenly spread ones.

    Raises:
        ValueError: there is no such class, or several have this name.
    """
    if words is None:
        shown = min(len(names), 10)
        return [number * len(names) // shown for number in range(shown)]
    return [_parse_class(word, names) for word in words]


def _parse_class(word: str, names: Sequence[str]) -> int:
    if word.isascii() and word.isdigit():
        label = int(word) if len(word) < 10 else len(names)
        if label < len(names):
            return label
    found = [label for label, name in enumerate(names) if name.casefold() == word.casefold()]
    if len(found) != 1:
        what = f"classes {found} of that name" if found else f"{word!r}"
        raise ValueError(f"found {what}, expected 0..{len(names) - 1} or the name of one class")
    return found[0]
