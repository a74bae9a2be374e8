import argparse
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import main_cache
from tests.commands import ROOT
from tokenizers import train_vq
from training.flags import build_parser
from util import logs
from util import run_record as record
from util.run_record import RECORD_FILE, describe_run, flags_of, record_run

LINES = [
    (build_parser, ""),
    (build_parser, "--evaluate --bf16 --save_npz --no_pin_mem --no-compile --seed=-5 --cfg 4.8"),
    (build_parser, "--compile --lr 1e-3 --group_sizes [1]*4+[2] --wandb_run_name 'a b'"),
    (build_parser, "--output_dir=-strange"),
    (main_cache.build_parser, "--cached_path 'a cache' --bf16"),
    (main_cache.build_parser, ""),
    (train_vq.build_parser, "--data_path d --ch_mult 1 2"),
]


@pytest.mark.parametrize(("build", "line"), LINES)
def test_flags_parse_to_the_same(build: object, line: str) -> None:
    parser = build()
    args = parser.parse_args(shlex.split(line))
    flags = [part for flag in flags_of(parser, args) for part in flag]
    assert parser.parse_args(flags) == args
    fewer = [part for flag in flags_of(parser, args, defaults=False) for part in flag]
    assert parser.parse_args(fewer) == args
    assert len(fewer) < len(flags)


def test_lists_and_positions() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1])
    args = parser.parse_args(["a", "b", "c", "--sizes", "2", "3"])
    assert list(flags_of(parser, args)) == [["a", "b", "c"], ["--sizes", "2", "3"]]


def test_a_block_can_be_pasted(tmp_path: Path) -> None:
    parser = build_parser()
    name = os.fsdecode(b"caf\xe9")  # names of files may be any bytes
    args = parser.parse_args(["--output_dir", "a folder", "--evaluate", "--data_path", name])
    for _ in range(2):
        record_run(parser, args, tmp_path)
    content = os.fsdecode((tmp_path / RECORD_FILE).read_bytes())
    assert content.count("--evaluate") == 2
    shown = 'python() { shift; printf "%s\\0" "$@"; }\n' + content
    done = subprocess.run(["bash"], input=os.fsencode(shown), capture_output=True, check=True)
    assert done.stderr == b""
    flags = os.fsdecode(done.stdout).split("\0")[:-1]
    assert parser.parse_args(flags[: len(flags) // 2]) == args


def test_a_record_that_is_run_ends(tmp_path: Path) -> None:
    record_run(argparse.ArgumentParser(), argparse.Namespace(), tmp_path)
    again = "import argparse, sys; sys.argv[0] = 'x'; from util.run_record import record_run; "
    again += f"record_run(argparse.ArgumentParser(), argparse.Namespace(), {str(tmp_path)!r})"
    python = (
        f"python() {{ {shlex.quote(sys.executable)} -c {shlex.quote(again)}; }}; export -f python"
    )
    content = (tmp_path / RECORD_FILE).read_text()
    runs = f"{python}; timeout 60 bash {shlex.quote(str(tmp_path / RECORD_FILE))}"
    subprocess.run(["bash", "-c", runs], cwd=ROOT, check=True)
    assert (tmp_path / RECORD_FILE).read_text().count("git ") == 2 * content.count("git ")


def test_a_recorded_run_logs_beside_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    logs.setup()
    record_run(argparse.ArgumentParser(), argparse.Namespace(), tmp_path)
    logging.getLogger("lpd").info("said afterwards")
    logs.setup()  # takes the log file off again
    assert "said afterwards" in (tmp_path / logs.LOG_FILE).read_text()


def test_versions_and_revision() -> None:
    text = describe_run(build_parser(), build_parser().parse_args([]))
    assert re.search(r"# python 3\.\d+\.\d+, torch \d+\.\d+", text)
    known = (ROOT / ".git").exists()
    assert re.search(r"git [0-9a-f]{40}" if known else "git revision unknown", text)


def test_revision_says_whether_the_code_is_that_of_the_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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
