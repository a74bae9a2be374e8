"""Signals: the first is noted, its echo ignored, a second one ends the process at once."""

import json
import os
import signal
import textwrap
import time
from pathlib import Path

import pytest

from tests.commands import ROOT, run_command
from util import signals as preemption
from util.signals import (
    MARKER,
    MARKER_VARIABLE,
    StopSignals,
    exit_code,
    leave_marker,
    remove_marker,
)


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_the_first_signal_is_noted_and_handlers_come_back(number: int) -> None:
    before = {name: signal.getsignal(name) for name in preemption.SIGNALS}
    with StopSignals() as signals:
        assert signals.received == 0
        os.kill(os.getpid(), number)
        assert signals.received == number
        os.kill(os.getpid(), signal.SIGTERM)  # an echo: still here
        assert signals.received == number
    assert {name: signal.getsignal(name) for name in preemption.SIGNALS} == before


def program(folder: Path, body: str) -> Path:
    path = folder / "program.py"
    header = f"""
        import os, signal, sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from util import signals as preemption
    """
    path.write_text(textwrap.dedent(header) + textwrap.dedent(body))
    return path


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    body = """
        preemption.ECHO_SECONDS = 0.05
        with preemption.StopSignals():
            os.kill(os.getpid(), signal.SIGUSR1)
            for _ in range(100):
                time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGTERM)
    """
    started = time.monotonic()
    result = run_command(program(tmp_path, body), timeout=60)
    assert result.returncode == exit_code(signal.SIGTERM) == 143
    assert time.monotonic() - started < 30
    assert result.stderr == ""


def test_a_second_ctrl_c_ends_a_process_that_is_inside_a_library(tmp_path: Path) -> None:
    """Python calls no handler before the library returns, and then one for both."""
    body = """
        import threading
        from datetime import timedelta
        from torch.distributed import TCPStore
        store = TCPStore("127.0.0.1", 0, is_master=True)
        with preemption.StopSignals():
            for seconds in (0.2, 0.4):
                threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
            store.wait(["never"], timedelta(seconds=40))
    """
    started = time.monotonic()
    result = run_command(program(tmp_path, body))
    assert result.returncode == 130, result.stderr
    assert time.monotonic() - started < 40


@pytest.mark.parametrize("run_id", [None, "of torchrun"])
def test_a_second_ctrl_c_ends_the_process_however_soon(tmp_path: Path, run_id: str | None) -> None:
    """Torchrun passes the first one on: there a second of within two seconds is the same one."""
    body = f"""
        os.environ.update({{"TORCHELASTIC_RUN_ID": {run_id!r}}} if {run_id!r} else {{}})
        with preemption.StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            sys.exit(f"still here, asked by signal {{signals.received}}")
    """
    result = run_command(program(tmp_path, body), timeout=60)
    said, *more = result.stderr.splitlines()
    assert said == "saving and ending; Ctrl-C again ends at once"
    if run_id is None:
        assert (result.returncode, more) == (exit_code(signal.SIGINT), [])
    else:
        assert (result.returncode, more) == (1, ["still here, asked by signal 2"])


def test_locks_are_let_go_of_at_the_end_and_before_a_signal_ends_the_process(
    tmp_path: Path,
) -> None:
    body = f"""
        from util.folder_lock import folder_lock
        folder = Path({str(tmp_path)!r})
        with preemption.StopSignals() as signals:
            signals.locks.enter_context(folder_lock(folder, "first"))
        assert not list(folder.glob(".*.lock"))
        with preemption.StopSignals() as signals, signals.leaving_at_once(lambda number: None):
            signals.locks.enter_context(folder_lock(folder, "second"))
            assert list(folder.glob(".*.lock"))
            os.kill(os.getpid(), signal.SIGTERM)
            sys.exit("the signal came too late")
    """
    result = run_command(program(tmp_path, body))
    assert result.returncode == 143, result.stderr
    assert not list(tmp_path.glob(".*.lock"))


@pytest.mark.parametrize("early", [False, True])
def test_where_all_is_saved_the_first_signal_ends_the_process(tmp_path: Path, early: bool) -> None:
    body = f"""
        def last_words(number):
            preemption.leave_marker(Path({str(tmp_path)!r}), number, epoch=3, step=0)
        def ask():
            os.kill(os.getpid(), signal.SIGUSR1)
        with preemption.StopSignals() as signals:
            if {early}:
                ask()
            with signals.leaving_at_once(last_words):
                ask()
                sys.exit("the signal came too late")
    """
    result = run_command(program(tmp_path, body))
    assert result.returncode == exit_code(signal.SIGUSR1) == 138, result.stderr
    expected = {"signal": "SIGUSR1", "epoch": 3, "step": 0}
    assert json.loads((tmp_path / MARKER).read_text()) == expected


def test_a_process_that_waits_in_a_library_leaves_all_the_same(tmp_path: Path) -> None:
    """Python calls no handler before the library returns."""
    body = f"""
        import threading
        from datetime import timedelta
        from torch.distributed import TCPStore
        def last_words(number):
            preemption.leave_marker(Path({str(tmp_path)!r}), number, images=640)
        def ask():
            os.kill(os.getpid(), signal.SIGTERM)
        store = TCPStore("127.0.0.1", 0, is_master=True)
        with preemption.StopSignals() as signals, signals.leaving_at_once(last_words):
            threading.Timer(0.2, ask).start()
            store.wait(["never"], timedelta(seconds=40))
    """
    started = time.monotonic()
    result = run_command(program(tmp_path, body))
    assert result.returncode == 143, result.stderr
    assert time.monotonic() - started < 40
    assert json.loads((tmp_path / MARKER).read_text()) == {"signal": "SIGTERM", "images": 640}


def test_a_marker_that_cannot_be_written_keeps_no_process(tmp_path: Path) -> None:
    body = f"""
        def last_words(number):
            preemption.leave_marker(Path({str(tmp_path / "missing")!r}), number, images=1)
        with preemption.StopSignals() as signals, signals.leaving_at_once(last_words):
            os.kill(os.getpid(), signal.SIGUSR1)
            sys.exit("the signal came too late")
    """
    result = run_command(program(tmp_path, body), timeout=60)
    assert result.returncode == 138
    assert "missing" in result.stderr and "Traceback" not in result.stderr


def test_after_the_block_a_signal_is_only_noted() -> None:
    with StopSignals() as signals:
        with signals.leaving_at_once(lambda number: None):
            pass
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received == signal.SIGUSR1
    assert signal.set_wakeup_fd(-1) == -1


def test_the_launcher_says_where_the_marker_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARKER_VARIABLE, str(tmp_path / "mark"))
    leave_marker(tmp_path / "elsewhere", signal.SIGTERM, shards=3)
    assert json.loads((tmp_path / "mark").read_text()) == {"signal": "SIGTERM", "shards": 3}
    monkeypatch.setenv("RANK", "1")
    leave_marker(tmp_path / "elsewhere", signal.SIGTERM, shards=4)
    assert json.loads((tmp_path / "mark").read_text())["shards"] == 3
    remove_marker(tmp_path / "elsewhere")
    assert not (tmp_path / "mark").exists()


def test_the_marker_is_removed_wherever_it_can_be(tmp_path: Path) -> None:
    leave_marker(tmp_path, signal.SIGTERM, epoch=1, step=37)
    expected = {"signal": "SIGTERM", "epoch": 1, "step": 37}
    assert json.loads((tmp_path / MARKER).read_text()) == expected
    for _ in range(2):
        remove_marker(tmp_path)
        assert not list(tmp_path.iterdir())
    (tmp_path / MARKER).mkdir()
    with pytest.raises(OSError, match=MARKER):
        remove_marker(tmp_path)
