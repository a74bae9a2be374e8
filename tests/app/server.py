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
from pathlib import Path
from typing import NamedTuple

from tests.commands import ROOT
from tests.integration.tiny_world import TinyWorld

# Seconds that the program may take to come up (Gradio is slow to import), and to end.
START_DEADLINE, STOP_DEADLINE = 240, 60


class RunningApp(NamedTuple):
    """`python scripts/app.py`."""

    address: str  # of the page
    process: subprocess.Popen
    log: Path  # a file with all that it has said


@contextmanager
def running_app(world: TinyWorld, log: Path, **variables: str) -> Iterator[RunningApp]:
    """Start the program on a free port; end it on the way out, whatever happened."""
    command = [sys.executable, "scripts/app.py", "--port", "0", "--device", "cpu"]
    command += ["--pretrained_ckpt", str(world.checkpoint), "--vqgan_path", str(world.tokenizer)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_heed_signals,
        )
    try:
        deadline = time.monotonic() + START_DEADLINE
        while not (found := re.search(r"the page is at (http://\S+)", log.read_text())):
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
