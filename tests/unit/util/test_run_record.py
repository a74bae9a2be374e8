import argparse
import os
import re
import shlex
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

import main_cache
from tests.commands import ROOT
from tokenizers import train_vq
from training.flags import build_parser
from util import logs
from util import run_record as record
from util.run_record import RECORD_FILE, flags_of, record_run


def lists_and_positions() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1])
    parser.add_argument("--cfg", type=float, default=1.0)
    return parser


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lists_and_positions, "a b c --sizes 2 3"),
        (build_parser, "--evaluate --bf16 --save_npz --no_pin_mem --no-compile --seed=-5 --cfg 4"),
        (build_parser, "--compile --group_sizes [1]*4+[2] --wandb_run_name 'a b' --log_dir=-odd"),
        (main_cache.build_parser, ""),
        (train_vq.build_parser, "--data_path d --ch_mult 1 2"),
    ],
)
def test_flags_parse_to_the_same(build: object, line: str) -> None:
    parser = build()
    args = parser.parse_args(shlex.split(line))
    flags, fewer = (list(chain(*flags_of(parser, args, all_of))) for all_of in (True, False))
    assert parser.parse_args(flags) == parser.parse_args(fewer) == args
    assert len(fewer) < len(flags)


def test_a_block_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    parser = build_parser()
    name = os.fsdecode(b"caf\xe9")  # names of files may be any bytes
    args = parser.parse_args(["--output_dir", "a folder", "--evaluate", "--data_path", name])
    for _ in range(2):
        record_run(parser, args, tmp_path)
    assert (tmp_path / logs.LOG_FILE).exists()
    logs.setup()  # takes the log file off again
    content = os.fsdecode((tmp_path / RECORD_FILE).read_bytes())
    assert content.count("--evaluate") == 2
    assert re.search(r"# python 3\.\d+\.\d+, torch \d+\.\d+", content)
    shown = 'python() { shift; printf "%s\\0" "$@"; }\n' + content
    done = subprocess.run(["bash"], input=os.fsencode(shown), capture_output=True, check=True)
    assert done.stderr == b""
    flags = os.fsdecode(done.stdout).split("\0")[:-1]
    assert parser.parse_args(flags[: len(flags) // 2]) == args


def test_a_record_that_is_run_ends(tmp_path: Path) -> None:
    record_run(argparse.ArgumentParser(), argparse.Namespace(), tmp_path)
    again = "import argparse, sys; sys.argv[0] = 'x'; from util.run_record import record_run; "
    again += f"record_run(argparse.ArgumentParser(), argparse.Namespace(), {str(tmp_path)!r})"
    python = shlex.join([sys.executable, "-c", again])
    file = tmp_path / RECORD_FILE
    starts = file.read_text().count("git ")
    runs = f"python() {{ {python}; }}; export -f python; timeout 60 bash {shlex.quote(str(file))}"
    subprocess.run(["bash", "-c", runs], cwd=ROOT, check=True)
    assert file.read_text().count("git ") == 2 * starts


def test_revision_tells_code_of_a_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.check_output(["git", *identity, *arguments], cwd=tmp_path, text=True)

    monkeypatch.setattr(record, "_ROOT", tmp_path)
    assert record.revision() == "git revision unknown"
    (tmp_path / "docs").mkdir()
    code, results = tmp_path / "code.py", tmp_path / "docs" / "results.json"
    for path in (code, results):
        path.write_text("1")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    commit = git("rev-parse", "HEAD").strip()
    results.write_text("2")
    assert record.revision() == f"git {commit}"
    code.write_text("2")
    assert record.revision() == f"git {commit} with changes"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record.revision() == "git revision unknown"


def test_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert record.launcher() == ["python"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    for world, nodes in (("8", ["--standalone"]), ("32", ["--nnodes", "4"])):
        monkeypatch.setenv("WORLD_SIZE", world)
        assert record.launcher() == ["torchrun", *nodes, "--nproc_per_node", "8"]
