"""Signals: the first is noted, its echo ignored, a second one ends the process at once."""

import json
import os
import signal
import textwrap
from pathlib import Path

import pytest

from tests.commands import run_command
from util.signals import MARKER, MARKER_VARIABLE, SIGNALS, StopSignals, leave_marker, remove_marker

HEADER = """
import os, signal, sys, time
from pathlib import Path
from util import signals as module
from util.folder_lock import folder_lock
from util.signals import StopSignals
folder = Path(sys.argv[1])
def last_words(number):
    module.leave_marker(folder, number, epoch=3, step=0)
"""
# A wait inside a library, while which Python calls no handler; signals come by a timer.
STORE = """
import threading
from datetime import timedelta
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True)
def ask(number, *seconds):
    for one in seconds:
        threading.Timer(one, os.kill, (os.getpid(), number)).start()
"""


def run(folder: Path, body: str, code: int) -> list[str]:
    """What a program says that leaves markers in `folder`; its waits of a minute must not end."""
    before = HEADER + STORE * ("store" in body)
    result = run_command("-c", before + textwrap.dedent(body), folder, timeout=50)
    assert result.returncode == code and "Traceback" not in result.stderr, result.stderr
    return result.stderr.splitlines()


def test_the_first_signal_is_noted_and_handlers_come_back() -> None:
    before = {name: signal.getsignal(name) for name in SIGNALS}
    for number in SIGNALS:
        with StopSignals() as signals:
            assert signals.received == 0
            with signals.leaving_at_once(lambda number: None):
                pass  # after the block a signal is only noted
            os.kill(os.getpid(), number)
            assert signals.received == number
            os.kill(os.getpid(), signal.SIGTERM)  # an echo: still here
            assert signals.received == number
    assert {name: signal.getsignal(name) for name in SIGNALS} == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    body = """
        module.ECHO_SECONDS = 0.05
        with StopSignals():
            os.kill(os.getpid(), signal.SIGUSR1)
            for _ in range(100):
                time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGTERM)
    """
    assert run(tmp_path, body, 143) == []


@pytest.mark.parametrize(
    ("variables", "code", "more"),
    [({}, 130, []), ({"TORCHELASTIC_RUN_ID": "x"}, 1, ["still here, asked by signal 2"])],
)
def test_a_second_ctrl_c_ends_all(tmp_path: Path, variables: dict, code: int, more: list) -> None:
    """Torchrun passes the first one on: there a second of within two seconds is the same one."""
    body = f"""
        os.environ.update({variables})
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            sys.exit(f"still here, asked by signal {{signals.received}}")
    """
    assert run(tmp_path, body, code) == ["saving and ending; Ctrl-C again ends at once", *more]


def test_a_process_inside_a_library_ends_all_the_same(tmp_path: Path) -> None:
    """Of two of Ctrl-C (Python would call one handler when the library returns), or of one."""
    waits = 'store.wait(["never"], timedelta(seconds=60))'
    run(tmp_path, f"with StopSignals():\n    ask(signal.SIGINT, 0.2, 0.4)\n    {waits}", 130)
    body = f"""
        with StopSignals() as signals, signals.leaving_at_once(last_words):
            ask(signal.SIGTERM, 0.2)
            {waits}
    """
    run(tmp_path, body, 143)
    assert json.loads((tmp_path / MARKER).read_text())["signal"] == "SIGTERM"


def test_locks_are_let_go_of_at_the_end_and_before_a_signal_ends_all(tmp_path: Path) -> None:
    body = """
        with StopSignals() as signals:
            signals.locks.enter_context(folder_lock(folder, "first"))
        assert not list(folder.glob(".*.lock"))
        with StopSignals() as signals, signals.leaving_at_once(lambda number: None):
            signals.locks.enter_context(folder_lock(folder, "second"))
            assert list(folder.glob(".*.lock"))
            os.kill(os.getpid(), signal.SIGTERM)
            sys.exit("the signal came too late")
    """
    run(tmp_path, body, 143)
    assert not list(tmp_path.glob(".*.lock"))


def test_where_all_is_saved_an_earlier_signal_ends_the_process(tmp_path: Path) -> None:
    body = """
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGUSR1)
            with signals.leaving_at_once(last_words):
                sys.exit("it should have left")
    """
    run(tmp_path, body, 138)
    marker = {"signal": "SIGUSR1", "epoch": 3, "step": 0}
    assert json.loads((tmp_path / MARKER).read_text()) == marker
    assert "missing" in run(tmp_path / "missing", body, 138)[-1]


def test_the_launcher_says_where_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    monkeypatch.setenv(MARKER_VARIABLE, str(mark))
    leave_marker(tmp_path, signal.SIGTERM, shards=3)
    monkeypatch.setenv("RANK", "1")
    leave_marker(tmp_path, signal.SIGTERM, shards=4)
    assert json.loads(mark.read_text()) == {"signal": "SIGTERM", "shards": 3}
    remove_marker(tmp_path)
    assert not list(tmp_path.iterdir())
