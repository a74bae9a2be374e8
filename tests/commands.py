"""Running this project's commands as a user does."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tests import warm
from util.logs import LOG_FILE
from util.run_record import RECORD_FILE

ROOT = Path(__file__).resolve().parents[1]


def results_in(folder: Path) -> list[Path]:
    """What a run left in a folder besides its log and the record of its command, sorted."""
    records = (LOG_FILE, RECORD_FILE, f".{RECORD_FILE}.part")
    return sorted(path for path in folder.iterdir() if path.name not in records)


def start_command(
    *arguments: object,
    processes: int | None = None,
    launcher: Sequence[str] = (),
    cold: bool = False,
    variables: dict[str, str] | None = None,
    **options: object,
) -> subprocess.Popen:
    """Start `python <arguments>` in the repository, under torchrun if `processes` is given.

    One thread per process, so that results are the same on any number of cores. A `cold` start is
    a new interpreter's; the others fork one that has its imports behind it, to the same effect.
    `launcher` holds flags of torchrun.
    """
    command = [sys.executable]
    if processes is not None:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += launcher
    start = subprocess.Popen if cold else warm.Popen
    return start(
        [*command, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **(variables or {})},
        **{"cwd": ROOT, "text": True, **options},
    )


def run_command(
    *arguments: object,
    processes: int | None = None,
    cold: bool = False,
    timeout: float = 300,
    folder: Path = ROOT,
    **variables: str,
) -> subprocess.CompletedProcess:
    """`start_command`, and wait for its end."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": folder}
    options = {"processes": processes, "cold": cold, "variables": variables, **pipes}
    with start_command(*arguments, **options) as process:
        try:
            outputs = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, *outputs)


def run_program(
    *arguments: object, timeout: float = 300, **variables: str
) -> subprocess.CompletedProcess:
    """Run any program in the repository, with a Python for it that starts as `run_command` does."""
    warm.server()
    own = {"OMP_NUM_THREADS": "1", "PYTHON": str(warm.client())}
    options = {"cwd": ROOT, "env": {**os.environ, **own, **variables}, "timeout": timeout}
    command = list(map(str, arguments))
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def opens_anywhere(*files: Path) -> bool:
    """Whether `torch.load` opens files with its defaults, where none of our code is at hand."""
    known = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()  # those of what is imported here
    try:
        return all(torch.load(path, weights_only=True) is not None for path in files)
    finally:
        torch.serialization.add_safe_globals(known)


def succeed(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    """`run_command` that must end well."""
    result = run_command(*arguments, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return result
