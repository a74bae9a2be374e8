"""Stand-ins for Slurm's commands, which record their arguments; starting the launcher."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.commands import ROOT

# Each call is recorded as one line.
HEAD = """#!/usr/bin/env bash
echo "${@//$'\\n'/ }" >>"$HOME/$(basename "$0")"
"""
# Runs the command as one task; all flags come before it.
SRUN = 'while [[ $1 == --* ]]; do shift; done; exec "$@"'
SBATCH = '[ -z "${REFUSE:-}" ] || { echo "sbatch: error: $REFUSE" >&2; exit 1; }; echo "12;cluster"'
SCONTROL = """case "$1 $2" in
"show hostnames") printf '%s\\nelsewhere\\n' "${FIRST:-localhost}" ;;
"show node") [ "$3" = no.such.name ] && echo "NodeName=$3 NodeAddr=10.1.2.3 NodeHostName=x" ;;
esac
"""


class Home:
    """A user's folder, with a cluster on the PATH."""

    def __init__(self, path: Path) -> None:
        self.path, self.out = path, path / "out"
        (path / "bin").mkdir()
        for name, script in {"srun": SRUN, "sbatch": SBATCH, "scontrol": SCONTROL}.items():
            self.program(name, script)

    def program(self, name: str, script: str) -> Path:
        path = self.path / "bin" / name
        path.write_text(HEAD + script)
        path.chmod(0o755)
        return path

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        paths = {"HOME": str(self.path), "PATH": f"{self.path}/bin:/usr/bin:/bin"}
        return {**kept, **paths, **variables}

    def line(self, *arguments: object) -> list[str]:
        flags = ["-J", "job", "--output-dir", self.out, *arguments]
        return [sys.executable, str(ROOT / "scripts/cli/run.py"), *map(str, flags)]

    def run(
        self, command: Sequence[object], timeout: int = 60, **variables: str
    ) -> subprocess.CompletedProcess:
        options = dict(cwd=self.path, capture_output=True, text=True, timeout=timeout, check=False)
        return subprocess.run(list(map(str, command)), env=self.environment(**variables), **options)

    def launch(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess:
        return self.run(self.line(*arguments), **variables)

    def calls(self, program: str) -> list[str]:
        path = self.path / program
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)
