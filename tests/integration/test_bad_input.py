"""Bad input ends in one line that names the flag or file, and leaves nothing half-written."""

import os
import pickle
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.commands import ROOT, results_in, run_command
from tests.integration.bad_files import Canary, build_files
from tests.integration.tiny_world import TinyWorld
from util.folder_lock import folder_lock

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SECTION = r"\n## (.+)\n\n```bash\npython ([^`]+)\n```\n\n\| given .+\n\|[-|]+\n((?:\|.+\n)+)"
ROW = r"\| (?:`(.+?)`)?(?:, )?(?:no `(.+?)`)? \| (.+) \| `(.+)` \|"


def rows() -> Iterator[pytest.param]:
    """What the page gives to its commands, and the line that it promises."""
    sections = re.findall(SECTION, PAGE)
    assert len(sections) == PAGE.count("\n## ")
    for title, command, table in sections:
        command = command.replace("\\\n    ", "")
        for row in table.splitlines():
            given, without, wrong, line = re.fullmatch(ROW, row).groups("")
            assert without in command
            if without:
                words = command.replace(without, given)
            else:
                head, *job = command.partition(" bash ")  # a job's command comes last
                words = " ".join([head, given]) + "".join(job)
            yield pytest.param(shlex.split(words), line, id=f"{title}: {given}, {wrong}")


@pytest.fixture(scope="module")
def files(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the page names; in `busy` others are at work."""
    folder = build_files(world, tmp_path_factory.mktemp("bad_input") / "files")
    with folder_lock(folder / "busy", "training"), folder_lock(folder / "busy", "evaluation"):
        yield folder


def files_in(folder: Path) -> set[Path]:
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    return {path for found in folders for path in results_in(found) if not path.is_dir()}


@pytest.mark.parametrize(("words", "line"), [*rows()])
def test_bad_input_ends_in_its_line(
    files: Path, tmp_path: Path, words: list[str], line: str
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    folder = shutil.copytree(files, tmp_path / "here", copy_function=os.link)
    before = files_in(folder)
    ending = run_command(ROOT / words[0], *words[1:], folder=folder, timeout=60)
    assert ending.returncode == 2, ending.stderr
    # Only the log and progress bars may come before it.
    *others, last = ending.stderr.splitlines()
    expected = ".*".join(map(re.escape, f"error: {line}".split("...")))
    assert re.fullmatch(expected, last), last
    assert not [other for other in others if re.match("error:|Traceback|  File ", other)]
    assert ending.stdout == ""
    assert files_in(folder) == before  # so no canary either


def test_the_canary_sings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Canary()))
    assert files_in(tmp_path) == {tmp_path / "canary"}


def test_of_two_processes_one_says_it(world: TinyWorld, tmp_path: Path) -> None:
    flags = [*world.eval_flags(tmp_path / "out"), "--num_images", "10"]
    result = run_command("main_lpd.py", *flags, processes=2)
    line = "error: --num_images: found 10, expected a multiple of the 3 classes (--class_num)\n"
    assert result.returncode == 1  # torchrun's own
    assert result.stderr.count(line) == 1
    assert re.search("exitcode *: 2", result.stderr)
    # Only torchrun's own report may hold a traceback; no worker wrote one.
    assert 'main_lpd.py", line' not in result.stderr
