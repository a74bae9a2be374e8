import os
import pty
import re
import termios
import threading
from pathlib import Path

import pytest

from tests.commands import run_command, start_command

SCRIPT = """
import logging, sys, time
from util import logs
from util.errors import UserError, run

logs.PROGRESS_SECONDS = 0.3

def main():
    logs.setup()
    logs.keep(sys.argv[1])
    for _ in logs.progress(range(10), desc="loop", unit="image"):
        time.sleep(0.15)
    for _ in logs.progress(range(10), desc="short"):
        pass
    logging.warning("said")
    if "--fail" in sys.argv:
        raise UserError("--flag: found this")
    if "--bug" in sys.argv:
        raise KeyError("a bug")

run(main)
"""
THREADS = """
import logging, sys, threading, time
from util import logs

logs.setup()
logs.PROGRESS_SECONDS = 0.0
ended = threading.Event()

def speak():  # as the thread that writes checkpoints does
    while not ended.is_set():
        logging.info("saved")

speaker = threading.Thread(target=speak)
with logs.progress(desc="epoch") as bar, logs.logging_redirect_tqdm():
    speaker.start()
    ends = time.monotonic() + 3
    while time.monotonic() < ends:
        bar.set_postfix(loss=time.monotonic())
        bar.update()
ended.set()
speaker.join()
"""


def run(script: str, *arguments: object, **variables: str) -> tuple[int, list[str]]:
    """Exit code and lines on standard error."""
    done = run_command("-c", script, *arguments, timeout=60, **variables)
    return done.returncode, done.stderr.splitlines()


def run_on_terminal(script: str, *arguments: object) -> tuple[int, bytes]:
    """Exit code and what the terminal shows."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    child = start_command("-c", script, *arguments, stderr=theirs)
    os.close(theirs)
    watch = threading.Timer(60, child.kill)
    watch.start()
    shown = b""
    try:
        while chunk := os.read(ours, 2**16):
            shown += chunk
    except OSError:  # how a terminal says that nobody writes any more
        pass
    os.close(ours)
    watch.cancel()
    return child.wait(), shown


def test_off_a_terminal_progress_is_lines_of_the_log_and_of_a_file(tmp_path: Path) -> None:
    code, lines = run(SCRIPT, tmp_path, "--fail")
    assert (code, lines.pop()) == (2, "error: --flag: found this")
    progress = [line for line in lines if "loop: " in line]
    assert 2 <= len(progress) <= 10  # a busy machine takes longer over less
    assert re.search(r"10/10 \[00:\d\d<00:00.*image/s\]", progress[-1])
    assert not [line for line in lines if "short" in line]
    assert lines[-1].endswith("W said")
    *kept, end = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[11:] for line in kept] == lines  # the file's lines carry the date, too
    assert end.endswith("E error: --flag: found this")
    code, lines = run(SCRIPT, tmp_path, "--bug")
    assert (code, lines.count("Traceback (most recent call last):")) == (1, 1)
    content = (tmp_path / "log.txt").read_text()
    assert content.splitlines()[: len(kept)] == kept and content.endswith("KeyError: 'a bug'\n")


def test_there_is_no_file_on_a_terminal_which_has_a_bar_nor_of_other_ranks(tmp_path: Path) -> None:
    code, shown = run_on_terminal(SCRIPT, tmp_path)
    assert code == 0 and b"\rloop: 100%" in shown
    assert run(SCRIPT, tmp_path, RANK="1") == (0, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_full_disk_ends_the_file_but_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    code, lines = run(SCRIPT, tmp_path)
    assert code == 0 and sum("log.txt: cannot be written" in line for line in lines) == 1
    assert not [line for line in lines if "Traceback" in line] and lines[-1].endswith("W said")


def test_threads_may_log_beside_progress() -> None:
    """Each of two locks, the log's and tqdm's, was waited for by who had the other."""
    code, lines = run(THREADS)
    assert code == 0 and any("epoch: " in line for line in lines)
    assert run_on_terminal(THREADS)[0] == 0
