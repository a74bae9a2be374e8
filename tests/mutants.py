"""Faults that the tests must catch: apply one, see a test fail, undo it.

    python -m tests.mutants 31       # make fault 31: `git diff` shows it, `git checkout` undoes it
    python -m tests.mutants --check  # which of them still find their place in the code

`mutants.json` holds faults of one line each, drawn with a seed from all folders of an earlier
state, each killed by the test that it names.
"""

import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def place_of(mutant: dict) -> re.Match | None:
    """The first place of the old text behind the head of its function."""
    file, name = ROOT / mutant["file"], mutant["function"].split(".")[-1]
    source = file.read_text() if file.exists() else ""
    words = re.findall(r"\w+|[^\w\s]", "\n".join(mutant["old"]))
    text = re.compile(r"(?<!\w)" + r"\s*".join(map(re.escape, words)) + r"(?!\w)")
    head = re.search(rf"\b(?:def|class) {name}\b", source)
    return head and text.search(source, head.start())


def apply(mutant: dict) -> str:
    """Write the fault into the code; return where."""
    place = place_of(mutant)
    if place is None:
        raise SystemExit(f"fault {mutant['id']}: no such place in the code of today: {mutant}")
    source = place.string
    before, old = source[: place.start()], place[0]
    line = before.rpartition("\n")[2]
    indent = line[: len(line) - len(line.lstrip())]
    new = f"\n{indent}".join(mutant["new"]) or ("" if old.endswith(",") else "pass")
    ast.parse(changed := before + new + source[place.end() :])
    (ROOT / mutant["file"]).write_text(changed)
    return f"{mutant['file']}:{before.count(chr(10)) + 1} in {mutant['function']}"


if __name__ == "__main__":
    mutants = {
        row["id"]: row for row in json.loads(Path(__file__).with_suffix(".json").read_text())
    }
    if sys.argv[1] == "--check":
        lost = [number for number, mutant in mutants.items() if place_of(mutant) is None]
        sys.stdout.write(f"{len(mutants) - len(lost)} of {len(mutants)} have a place; not {lost}\n")
    else:
        sys.stdout.write(apply(mutants[int(sys.argv[1])]) + "\n")
