"""Running commands from a process that has imported their libraries, which takes most of a start.

As a script: for every line of standard input, a JSON list of script, flags and folder, fork a
process that does in the folder what `python script flags` would do, and answer with its `Ending`.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

ROOT = Path(__file__).resolve().parents[3]
# What a command may take, seconds.
TIMEOUT = 60


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    Attributes:
        code: its exit code, or less the signal that ended it.
        stdout, stderr: what it wrote.
    """

    code: int
    stdout: str
    stderr: str


class WarmStart:
    """Starts commands; leave it as a context to end the process behind it.

    Args:
        modules: what to import once.
    """

    def __init__(self, modules: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Nothing is downloaded here, and nothing taken from a cache of the machine's.
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "HF_HOME": "no_cache",
            },
            text=True,
        )

    def __enter__(self) -> WarmStart:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=TIMEOUT)

    def run(self, script: Path, flags: list[str], folder: Path) -> Ending:
        """What becomes of `python script flags` in a folder."""
        self._process.stdin.write(json.dumps([str(script), flags, str(folder)]) + "\n")
        self._process.stdin.flush()
        return Ending(**json.loads(self._process.stdout.readline()))


def become(script: str, flags: list[str], folder: str, outputs: list[BinaryIO]) -> NoReturn:
    """Turn this process into a command."""
    signal.alarm(TIMEOUT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, output in enumerate(outputs, start=1):
        os.dup2(output.fileno(), descriptor)
    os.chdir(folder)
    sys.argv = [script, *flags]
    sys.path[0] = str(Path(script).parent)
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # as the interpreter would
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(script: str, flags: list[str], folder: str) -> Ending:
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        child = os.fork()
        if child == 0:
            become(script, flags, folder, [stdout, stderr])
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode())
        return Ending(os.waitstatus_to_exitcode(status), *texts)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(asdict(start(*json.loads(line)))) + "\n")
        sys.stdout.flush()
