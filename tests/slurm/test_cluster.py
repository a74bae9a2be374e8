"""What the tests of this folder say where there can be no Slurm."""

import os
from pathlib import Path

import pytest

from tests.apt import MissingProgramsError
from tests.slurm import cluster


def test_what_keeps_slurm_from_being_installed_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cluster, "PROGRAMS", ("no-such-program",))
    apt = tmp_path / "apt-get"
    apt.write_text('#!/bin/sh\necho "$@" >>"$0.calls"\necho "E: no network" >&2\nexit 100\n')
    apt.chmod(0o755)
    for user, path, message in (
        (1000, f"{tmp_path}:/bin", "no-such-program missing, and not root to install it"),
        (0, f"{tmp_path}:/bin", "apt-get install slurmctld .* failed: E: no network"),
        (0, str(tmp_path / "empty"), "missing, and no apt-get to install it"),
    ):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        monkeypatch.setenv("PATH", path)
        with pytest.raises(MissingProgramsError, match=message), cluster.two_nodes(1):
            pass
    update, install = Path(f"{apt}.calls").read_text().splitlines()
    assert update == "-q update" and install.endswith("slurmctld slurmd slurm-client munge")
