"""A forked command is a started one: same bits, same words, same end, and a child of the test."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import warm
from tests.commands import run_command, start_command, succeed
from tests.integration.test_resume import EPOCHS, same_training
from tests.integration.tiny_world import build_world

PROGRAM = """
import atexit, os, signal, sys
atexit.register(print, "at the end")
print(sys.argv[1:], os.getcwd(), os.environ["RANK"], sys.stdin.read(), __name__)
{}
"""
SLEEPER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(os.getpid(), flush=True)
time.sleep(60)
"""
ENDS = {
    "": 0,
    "sys.exit(7)": 7,
    "sys.exit('a reason')": 1,
    "raise ValueError('a bug')": 1,
    "os.kill(os.getpid(), signal.SIGTERM)": -signal.SIGTERM,
    "raise KeyboardInterrupt": -signal.SIGINT,
}


@pytest.mark.parametrize("last", ENDS)
def test_a_fork_says_and_ends_as_a_start(tmp_path: Path, last: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(last))
    options = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | {"cwd": tmp_path}
    shell = [warm.client(), program, "--flag"]  # as a shell script would
    found = []
    for process in (
        start_command(program, "--flag", variables={"RANK": "3"}, **options),
        start_command(program, "--flag", variables={"RANK": "3"}, cold=True, **options),
        subprocess.Popen(shell, env={**warm.base_variables(), "RANK": "3"}, text=True, **options),
    ):
        output, errors = process.communicate("asked", timeout=60)
        found.append((process.returncode, output, errors))
    assert found[0] == found[1] == found[2]
    assert found[0][0] == ENDS[last]


def test_a_client_passes_signals_on_and_takes_its_process_with_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SLEEPER)
    warm.server()
    variables = {**warm.base_variables()}
    del variables["PYTHON"]  # a shell script need not hand it on
    options = dict(stdout=subprocess.PIPE, text=True, env=variables)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with subprocess.Popen([warm.client(), program], **options) as process:
            other = int(process.stdout.readline())
            process.send_signal(number)
            assert process.wait(60) == (7 if number == signal.SIGTERM else -number)
        with pytest.raises(ProcessLookupError):
            for _ in range(6000):
                os.kill(other, 0)
                time.sleep(0.01)


@pytest.mark.parametrize("processes", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_a_fork_trains_to_the_same_bits(tmp_path: Path, processes: int | None) -> None:
    world, folders = build_world(tmp_path), (tmp_path / "fork", tmp_path / "start")
    more = f"--epochs {EPOCHS} --batch_size {16 // (processes or 1)}".split()
    for folder in folders:
        options = {"processes": processes, "cold": folder.name == "start"}
        succeed("main_lpd.py", *world.train_flags(folder), *more, **options)
    assert same_training(*folders)


def test_only_what_is_read_late_is_given_to_a_fork(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(code := "import sys; print('main_lpd' in sys.modules, sys.argv[1:])")
    for variables, forked in (({"WORLD_SIZE": "1"}, True), ({"OMP_NUM_THREADS": "2"}, False)):
        for command in ([program], ["-u", program], ["-c", code]):
            assert run_command(*command, "-u", **variables).stdout == f"{forked} ['-u']\n"
