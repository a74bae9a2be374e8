"""Debian packages that some tests need, installed where that is possible."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


class MissingProgramsError(RuntimeError):
    """Programs are missing and cannot be installed; the message says why."""


def require_programs(
    programs: Sequence[str], packages: Sequence[str], search_path: str | None = None
) -> None:
    """Install packages if a program is missing on the path; `MissingProgramsError` if it cannot."""

    def missing() -> str:
        return ", ".join(name for name in programs if shutil.which(name, path=search_path) is None)

    with (Path(tempfile.gettempdir()) / "apt-get.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other tests may be at it
        if not missing():
            return
        if os.geteuid() != 0:
            raise MissingProgramsError(f"{missing()} missing, and not root to install it")
        if shutil.which("apt-get") is None:
            raise MissingProgramsError(f"{missing()} missing, and no apt-get to install it")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
            line = ["apt-get", "-q", *command]
            result = subprocess.run(line, env=quiet, check=False, **streams)
        if missing():
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise MissingProgramsError(f"apt-get install {' '.join(packages)} failed: {last}")
