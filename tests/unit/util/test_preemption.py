"""Signals: the first is noted, its echo ignored, a second one ends the process at once."""

import json
import os
import signal
import textwrap
import time
from pathlib import Path

import pytest

from tests.commands import ROOT, run_command
from util import preemption
from util.errors import UserError
from util.preemption import (
    MARKER,
    StopSignals,
    exit_code,
    remove_marker,
    write_marker,
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
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
        from util import preemption
    """
    path.write_text(textwrap.dedent(header) + textwrap.dedent(body))
    return path


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    body = """
        preemption.ECHO_SECONDS = 0.05
        with preemption.StopSignals():
            os.kill(os.getpid(), signal.SIGUSR1)
            while True:
                os.kill(os.getpid(), signal.SIGTERM)
    """
    started = time.monotonic()
    result = run_command(program(tmp_path, body))
    assert result.returncode == exit_code(signal.SIGTERM) == 143
    assert time.monotonic() - started < 30
    assert result.stderr == ""


@pytest.mark.parametrize("early", [False, True])
def test_where_all_is_saved_the_first_signal_ends_the_process(tmp_path: Path, early: bool) -> None:
    body = f"""
        def last_words(number):
            preemption.write_marker(Path({str(tmp_path)!r}), number, 3, 0)
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


def test_the_marker_is_removed_wherever_it_can_be(tmp_path: Path) -> None:
    write_marker(tmp_path, signal.SIGTERM, 1, 37)
    assert json.loads((tmp_path / MARKER).read_text())["signal"] == "SIGTERM"
    for _ in range(2):
        remove_marker(tmp_path)
        assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    remove_marker(tmp_path / "file" / "folder")  # reported where the folder is made
    (tmp_path / MARKER).mkdir()
    with pytest.raises(UserError, match=f"--output_dir: .*{MARKER}"):
        remove_marker(tmp_path)
