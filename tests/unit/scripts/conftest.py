"""Stand-ins for Slurm's commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.scripts.slurm_stand_in import SBATCH, SCONTROL, SRUN


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with stand-ins for Slurm's commands, which record their arguments in it."""
    (tmp_path / "bin").mkdir()
    for name, script in {"srun": SRUN, "sbatch": SBATCH, "scontrol": SCONTROL}.items():
        path = tmp_path / "bin" / name
        path.write_text(script)
        path.chmod(0o755)
    return tmp_path
