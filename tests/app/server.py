"""The program under test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.commands import ROOT

_ADDRESS = re.compile(r"the page is at (http://\S+)")
# Seconds that the program may take to come up (Gradio is slow to import), and to end.
START_DEADLINE, STOP_DEADLINE = 240, 60


@dataclass(frozen=True)
class RunningApp:
    """`python scripts/app.py`.

    Attributes:
        address: of the page.
        process: of the program.
        log: a file with all that it has said.
    """

    address: str
    process: subprocess.Popen
    log: Path

    def end(self, number: signal.Signals) -> int:
        """Send it a signal, and give the exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_DEADLINE)


@contextmanager
def running_app(log: Path, *flags: object, **variables: str) -> Iterator[RunningApp]:
    """Start the program on a free port; end it on the way out, whatever happened.

    Args:
        log: where to put what it says.
        flags: for it.
        variables: of its environment, besides those of this process.
    """
    command = [sys.executable, "scripts/app.py", "--port", "0", *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_heed_signals,
        )
    try:
        deadline = time.monotonic() + START_DEADLINE
        while not (found := _ADDRESS.search(log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"found {log.read_text()!r}, expected an address")
            time.sleep(0.1)
        yield RunningApp(found[1], process, log)
    finally:
        process.terminate()  # it tidies up
        try:
            process.wait(STOP_DEADLINE)
        finally:
            process.kill()
            process.wait()


def _heed_signals() -> None:
    """A shell's background jobs ignore Ctrl-C, nohup's SIGHUP, and so would what they start."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
