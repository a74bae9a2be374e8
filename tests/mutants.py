"""Faults that the tests must catch: apply one, see a test fail, undo it.

    python -m tests.mutants 31       # make fault 31: `git diff` shows it, `git checkout` undoes it
    python -m tests.mutants --check  # which of them still find their place in the code

`mutants.json` holds faults of one line each, drawn with a seed from all folders of an earlier
state, each killed by the test that it names (files and functions as they were called then).
"""

import ast
import io
import json
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYOUT = {
    *(tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.COMMENT, tokenize.ENDMARKER),
}
Words = list[tokenize.TokenInfo]


def words_of(text: str) -> Words:
    """The tokens of Python code, without its layout; those of a part of a bracket, too."""
    words: Words = []
    try:
        for word in tokenize.generate_tokens(io.StringIO(text).readline):
            if word.type not in LAYOUT:
                words.append(word)
    except (tokenize.TokenError, IndentationError):
        pass
    return words


def places_of(mutant: dict) -> list[tuple[Path, str, Words]]:
    """Where the old text stands: file, innermost function, tokens."""
    wanted = [word.string for word in words_of("\n".join(mutant["old"]))]
    places = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0] == "tests" or any(part.startswith(".") for part in parts):
            continue
        source = path.read_text()
        if not all(word in source for word in wanted):
            continue
        words = words_of(source)
        functions = [
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
        for start in range(len(words) - len(wanted) + 1):
            part = words[start : start + len(wanted)]
            if [word.string for word in part] == wanted:
                line = part[0].start[0]
                around = [node for node in functions if node.lineno <= line <= node.end_lineno]
                name = max(around, key=lambda node: node.lineno).name if around else ""
                places.append((path, name, part))
    return places


def place_of(mutant: dict) -> tuple[Path, str, Words] | None:
    """The one place in the function of the same name, else the one place anywhere."""
    places = places_of(mutant)
    same = [place for place in places if place[1] == mutant["function"].split(".")[-1]]
    for found in (same, places):
        if len(found) == 1:
            return found[0]
    return None


def apply(mutant: dict) -> str:
    """Write the fault into the code; return where."""
    place = place_of(mutant)
    if place is None:
        raise SystemExit(f"fault {mutant['id']}: no such place in the code of today: {mutant}")
    path, name, part = place
    lines = path.read_text().splitlines(keepends=True)
    (first, left), (last, right) = part[0].start, part[-1].end
    indent = lines[first - 1][: len(lines[first - 1]) - len(lines[first - 1].lstrip())]
    new = f"\n{indent}".join(mutant["new"]) or ("" if part[-1].string == "," else "pass")
    lines[first - 1 : last] = [lines[first - 1][:left] + new + lines[last - 1][right:]]
    ast.parse("".join(lines))
    path.write_text("".join(lines))
    return f"{path.relative_to(ROOT)}:{first} in {name}"


if __name__ == "__main__":
    mutants = {
        row["id"]: row for row in json.loads(Path(__file__).with_suffix(".json").read_text())
    }
    if sys.argv[1] == "--check":
        lost = [number for number, mutant in mutants.items() if place_of(mutant) is None]
        sys.stdout.write(f"{len(mutants) - len(lost)} of {len(mutants)} have a place; not {lost}\n")
    else:
        sys.stdout.write(apply(mutants[int(sys.argv[1])]) + "\n")
