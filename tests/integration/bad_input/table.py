"""The form of the bad-input cases."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from tests.integration.bad_input.files import Spoil


@dataclass(frozen=True)
class Case:
    """One way to give a command bad input.

    Attributes:
        flags: what is given besides the command's line, as in a shell.
        wrong: what is wrong with it.
        line: what the command then prints, after `error: `; `...` stands for what depends on
            versions and machine.
        spoil: makes the bad file, in the folder where the command runs.
        without: what of the command's line is left out: a flag, with its value if it has one, or
            COMMAND.
    """

    flags: str
    wrong: str
    line: str
    spoil: Spoil | None = None
    without: str = ""

    @property
    def given(self) -> str:
        """What the user wrote, for the page."""
        parts = [f"`{self.flags}`"] if self.flags else []
        if self.without:
            parts.append(f"no `{self.without}`")
        return ", ".join(parts)


@dataclass(frozen=True)
class Group:
    """Cases of one command.

    Attributes:
        title: what it is about.
        script: the command.
        flags: its line, which works (see `files.build_good_files`).
        cases: each spoils it; a flag given twice counts the second time.
        command: what follows a case's flags.
    """

    title: str
    script: str
    flags: str
    cases: tuple[Case, ...]
    command: str = ""

    def arguments(self, case: Case) -> list[str]:
        """All that follows the name of the script."""
        words = shlex.split(self.flags)
        if case.without in words:
            at = words.index(case.without)
            has_value = at + 1 < len(words) and not words[at + 1].startswith("-")
            del words[at : at + 1 + has_value]
        command = [] if case.without == "COMMAND" else shlex.split(self.command)
        return [*words, *shlex.split(case.flags), *command]
