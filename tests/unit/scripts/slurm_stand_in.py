"""Stand-ins for Slurm's commands, and how tests start what uses them."""

from __future__ import annotations

import os
from pathlib import Path

# Runs the command as one task; all flags come before it. Each call is recorded as one line.
SRUN = """#!/usr/bin/env bash
echo "${@//$'\\n'/ }" >>"$HOME/srun"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SBATCH = """#!/usr/bin/env bash
echo "$@" >>"$HOME/sbatch"
[ "${REFUSE:-}" = "" ] || { echo "sbatch: error: $REFUSE" >&2; exit 1; }
echo "12;cluster"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >>"$HOME/scontrol"
case "$1 $2" in
"show hostnames") printf 'localhost\\nelsewhere\\n' ;;
"show node") [ "$3" = no.such.name ] && echo "NodeName=$3 NodeAddr=10.1.2.3 NodeHostName=x" ;;
esac
"""


def environment(home: Path, **variables: str) -> dict[str, str]:
    path = f"{home}/bin:/usr/bin:/bin"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return {**kept, "HOME": str(home), "PATH": path, **variables}


def calls(home: Path, program: str) -> list[str]:
    path = home / program
    return path.read_text().splitlines() if path.exists() else []
