"""Running this project's commands as a user does."""

import os
import subprocess
import sys
from pathlib import Path

from util.logs import LOG_FILE
from util.run_record import RECORD_FILE

ROOT = Path(__file__).resolve().parents[1]


def results_in(folder: Path) -> list[Path]:
    """What a run left in a folder besides its log and the record of its command, sorted."""
    records = (LOG_FILE, RECORD_FILE, f".{RECORD_FILE}.part")
    return sorted(path for path in folder.iterdir() if path.name not in records)


def run_command(
    *arguments: object, processes: int | None = None, timeout: float = 300, **variables: str
) -> subprocess.CompletedProcess:
    """Run `python <arguments>` in the repository, under torchrun if `processes` is given.

    One thread per process, so that results are the same on any number of cores.
    """
    launcher = [sys.executable]
    if processes is not None:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return run_program(*launcher, *arguments, timeout=timeout, **variables)


def run_program(
    *arguments: object, timeout: float = 300, **variables: str
) -> subprocess.CompletedProcess:
    """Run any program in the repository, with this interpreter for its Python."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **variables}
    return subprocess.run(
        list(map(str, arguments)),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def opens_anywhere(*files: Path) -> bool:
    """Whether `torch.load` opens files with its defaults, where none of our code is at hand."""
    code = "import sys, torch; [torch.load(path) for path in sys.argv[1:]]"
    result = run_command("-I", "-c", code, *files)
    assert result.returncode == 0, result.stderr[-3000:]
    return bool(files)


def succeed(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    """`run_command` that must end well."""
    result = run_command(*arguments, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return result
