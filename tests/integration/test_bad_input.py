"""Bad input ends in one line that names the flag or file, and leaves nothing half-written."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.commands import ROOT, results_in, run_command
from tests.integration.bad_input.files import build_good_files
from tests.integration.bad_input.page import GROUPS, PAGE, page
from tests.integration.bad_input.table import Case, Group
from tests.integration.tiny_world import TinyWorld

CASES = [
    pytest.param(group, case, id=f"{group.title}: {case.given}: {case.wrong}")
    for group in GROUPS
    for case in group.cases
]


@pytest.fixture(scope="module")
def good_files(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_good_files(world, tmp_path_factory.mktemp("bad_input") / "good")


def copy(source: str, target: str) -> None:
    """Weights, which no case writes to, are not copied a hundred times."""
    (os.link if source.endswith((".pt", ".pth")) else shutil.copy)(source, target)


def files_in(folder: Path) -> set[Path]:
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    return {path for found in folders for path in results_in(found) if path.is_file()}


@pytest.mark.parametrize(("group", "case"), CASES)
def test_bad_input_ends_in_its_line(
    good_files: Path, tmp_path: Path, group: Group, case: Case
) -> None:
    if "--device cuda" in case.flags and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    folder = shutil.copytree(good_files, tmp_path / "here", copy_function=copy)
    if case.spoil is not None:
        case.spoil(folder)
    before = files_in(folder)
    command = (ROOT / group.script, *group.arguments(case))
    ending = run_command(*command, folder=folder, timeout=60)
    assert ending.returncode == 2, ending.stderr
    # Only the log and progress bars may come before it.
    *others, line = ending.stderr.splitlines()
    expected = ".*".join(map(re.escape, f"error: {case.line}".split("...")))
    assert re.fullmatch(expected, line), line
    assert not [other for other in others if re.match("error:|Traceback|  File ", other)]
    assert ending.stdout == ""
    assert files_in(folder) == before  # so no canary either


def test_the_page_is_made_from_the_cases() -> None:
    assert PAGE.read_text() == page(), "python -m tests.integration.bad_input.page writes it anew"


@pytest.mark.parametrize("processes", [None, 2])
def test_the_command_ends_in_one_line(
    world: TinyWorld, tmp_path: Path, processes: int | None
) -> None:
    flags = [*world.eval_flags(tmp_path / "out"), "--num_images", "10"]
    result = run_command("main_lpd.py", *flags, processes=processes)
    line = "error: --num_images: found 10, expected a multiple of the 3 classes (--class_num)\n"
    assert result.returncode == (2 if processes is None else 1)  # 1 is torchrun's own
    if processes is None:
        assert result.stderr == line
    else:
        assert result.stderr.count(line) == 1
        assert re.search("exitcode *: 2", result.stderr)
        # Only torchrun's own report may hold a traceback; no worker wrote one.
        assert 'main_lpd.py", line' not in result.stderr
