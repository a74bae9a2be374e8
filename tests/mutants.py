"""Faults that the tests must catch: apply one, see a test fail, undo it.

    python -m tests.mutants 31       # make fault 31: `git diff` shows it, `git checkout` undoes it
    python -m tests.mutants --check  # which of them still find their place in the code

`mutants.json` holds faults of one line each, drawn with a seed from all folders of an earlier
state, each killed by the test that it names (files and functions as they were called then).
"""

import ast
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Place(NamedTuple):
    """Where the old text of a fault stands."""

    path: Path
    function: str  # the innermost one
    start: int
    end: int


def place_of(mutant: dict) -> Place | None:
    """The one place in the function of the same name, else the one place anywhere."""
    words = re.findall(r"\w+|[^\w\s]", "\n".join(mutant["old"]))
    text = re.compile(r"(?<!\w)" + r"\s*".join(map(re.escape, words)) + r"(?!\w)")
    places = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0] == "tests" or any(part.startswith(".") for part in parts):
            continue
        source = path.read_text()
        for match in text.finditer(source):
            line = source.count("\n", 0, match.start()) + 1
            functions = [
                node
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.FunctionDef | ast.ClassDef)
                and node.lineno <= line <= node.end_lineno
            ]
            name = max(functions, key=lambda node: node.lineno).name if functions else ""
            places.append(Place(path, name, *match.span()))
    same = [one for one in places if one.function == mutant["function"].split(".")[-1]]
    return next((found[0] for found in (same, places) if len(found) == 1), None)


def apply(mutant: dict) -> str:
    """Write the fault into the code; return where."""
    place = place_of(mutant)
    if place is None:
        raise SystemExit(f"fault {mutant['id']}: no such place in the code of today: {mutant}")
    source = place.path.read_text()
    before, old = source[: place.start], source[place.start : place.end]
    line = before.rpartition("\n")[2]
    indent = line[: len(line) - len(line.lstrip())]
    new = f"\n{indent}".join(mutant["new"]) or ("" if old.endswith(",") else "pass")
    ast.parse(changed := before + new + source[place.end :])
    place.path.write_text(changed)
    return f"{place.path.relative_to(ROOT)}:{before.count(chr(10)) + 1} in {place.function}"


if __name__ == "__main__":
    mutants = {
        row["id"]: row for row in json.loads(Path(__file__).with_suffix(".json").read_text())
    }
    if sys.argv[1] == "--check":
        lost = [number for number, mutant in mutants.items() if place_of(mutant) is None]
        sys.stdout.write(f"{len(mutants) - len(lost)} of {len(mutants)} have a place; not {lost}\n")
    else:
        sys.stdout.write(apply(mutants[int(sys.argv[1])]) + "\n")
