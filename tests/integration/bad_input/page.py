"""`docs/troubleshooting.md`, made from the cases that the test runs.

    python -m tests.integration.bad_input.page

writes it anew.
"""

import re
from collections.abc import Iterator
from importlib import import_module

from tests.commands import ROOT
from tests.integration.bad_input.table import Group

PAGE = ROOT / "docs" / "troubleshooting.md"

MODULES = "evaluation scoring orders_study editing training commands visualize hub app"
# Some are imported from one module into the next.
GROUPS = dict.fromkeys(
    group
    for name in MODULES.split()
    for group in vars(import_module(f"tests.integration.bad_input.{name}")).values()
    if isinstance(group, Group)
)

_HEAD = """# What goes wrong, and what it says

<!-- Made by python -m tests.integration.bad_input.page from the cases that the tests run. -->

Bad input ends in one line, `error: ` and what stands below on the right, and exit code 2; `--debug`
adds the traceback. Each command is shown with a line that works; on the left stands what is given
besides (a flag given twice counts the second time). `...` stands for what depends on versions and
files. The tests run every line of this page.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(line for group in GROUPS for line in _section(group))])


def _section(group: Group) -> Iterator[str]:
    yield f"## {group.title}\n"
    working = f"python {group.script} {group.flags} {group.command}".rstrip()
    yield f"```bash\n{_wrapped(working)}\n```\n"
    yield "| given | what is wrong | what it says |"
    yield "|---|---|---|"
    for case in group.cases:
        yield f"| {case.given} | {case.wrong} | `{case.line}` |"
    yield ""


def _wrapped(command: str, width: int = 100) -> str:
    """A command on lines of at most `width`; what is quoted stays together."""
    lines = [""]
    for word in re.findall(r"(?:'[^']*'|[^\s'])+", command):
        if len(lines[-1]) + len(word) + 3 > width:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
