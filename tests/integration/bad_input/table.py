"""The form of the bad-input cases."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import dedent

from tests.integration.bad_input.files import Spoil


@dataclass(frozen=True)
class Case:
    """One way to give a command bad input."""

    flags: str  # what is given besides the command's line, as in a shell
    wrong: str  # what is wrong with it
    line: str  # what is printed after `error: `; `...` for what depends on versions and machine
    spoil: Spoil | None = None  # makes the bad file, in the folder where the command runs
    without: str = ""  # left out of the command's line: a flag, with its value, or COMMAND

    @property
    def given(self) -> str:
        """What the user wrote, for the page."""
        parts = [f"`{self.flags}`"] if self.flags else []
        if self.without:
            parts.append(f"no `{self.without}`")
        return ", ".join(parts)


def cases(text: str, spoils: Mapping[str, Spoil] | None = None) -> tuple[Case, ...]:
    """Read cases: `flags, no WITHOUT | wrong`, and indented below it the `line`.

    `spoils` are found by what is wrong.
    """
    found, spoils = [], spoils or {}
    for row in re.split(r"\n(?! )", dedent(text).strip()):
        head, *line = map(str.strip, row.splitlines())
        given, wrong = map(str.strip, head.split("|"))
        flags, without = re.fullmatch(r"(.*?)(?:(?:^|, )no (\S+))?", given).groups("")
        found.append(Case(flags, wrong, " ".join(line), spoils.get(wrong), without))
    assert spoils.keys() <= {case.wrong for case in found}
    return tuple(found)


@dataclass(frozen=True)
class Group:
    """Cases of one command."""

    title: str  # what it is about
    script: str
    flags: str  # its line, which works (see `files.build_good_files`)
    cases: tuple[Case, ...]  # each spoils it; a flag given twice counts the second time
    command: str = ""  # what follows a case's flags

    def arguments(self, case: Case) -> list[str]:
        """All that follows the name of the script."""
        words = shlex.split(self.flags)
        if case.without in words:
            at = words.index(case.without)
            has_value = at + 1 < len(words) and not words[at + 1].startswith("-")
            del words[at : at + 1 + has_value]
        command = [] if case.without == "COMMAND" else shlex.split(self.command)
        return [*words, *shlex.split(case.flags), *command]
