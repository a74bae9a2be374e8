"""What the classes are called, and classes as users name them."""

from collections.abc import Sequence
from pathlib import Path

from util.errors import blame
from util.files import open_file, read_json

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def read_class_names(spec: str | None, class_num: int) -> list[str]:
    """Read the name of every class, of several synonyms (`tench, Tinca tinca`) the first.

    `spec` is None for `class 0` ..., `digits` for the demo's, or a file: text with a name a line;
    or JSON, a list or an object by number of names, or of lists (`["n01440764", "tench"]`), whose
    last entry counts. A `UserError` on --class_names if it does not give `class_num` names.
    """
    if spec is None:
        return [f"class {label}" for label in range(class_num)]
    with blame("--class_names"):
        entries = list(DIGITS) if spec == "digits" else _read_entries(spec)
        if len(entries) != class_num:
            raise ValueError(
                f"{spec} names {len(entries)} classes, expected the {class_num} of the model"
            )
    return [entry.split(",")[0].strip().replace("_", " ") for entry in entries]


def _read_entries(path: str) -> list[str]:
    if Path(path).suffix == ".json":
        content = read_json(path)
        found = type(content).__name__
        if isinstance(content, dict):
            numbers = [str(label) for label in range(len(content))]
            found = f"keys other than 0..{len(content) - 1}"
            if content.keys() == set(numbers):
                content = [content[number] for number in numbers]
        if not isinstance(content, list):
            raise ValueError(f"{path}: found {found}, expected a list of names, or names by number")
        names = [entry[-1] if isinstance(entry, list) and entry else entry for entry in content]
        if others := [name for name in names if not isinstance(name, str)]:
            raise ValueError(
                f"{path}: found {others[0]!r:.40} in the place of a name, expected text"
            )
        return names
    try:
        with open_file(path) as stream:
            return [line for line in stream.read().decode().splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_classes(words: Sequence[str] | None, names: Sequence[str]) -> list[int]:
    """Find classes by number or name; None for all of up to ten, else ten evenly spread ones.

    A `ValueError` if there is no such class, or several have this name.
    """
    if words is None:
        shown = min(len(names), 10)
        return [number * len(names) // shown for number in range(shown)]
    labels = []
    for word in words:
        found = [label for label, name in enumerate(names) if name.casefold() == word.casefold()]
        # Python refuses to read very long numbers.
        if word.isascii() and word.isdigit() and len(word) < 10 and int(word) < len(names):
            found = [int(word)]
        if len(found) != 1:
            what = f"classes {found} of that name" if found else f"{word!r}"
            expected = f"expected 0..{len(names) - 1} or the name of one class"
            raise ValueError(f"found {what}, {expected}")
        labels += found
    return labels
