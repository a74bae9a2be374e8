"""What the tests of this folder say where there can be no Slurm."""

import os
from pathlib import Path

import pytest

from tests.slurm import cluster
from tests.slurm.cluster import NoSlurmError, require_packages

APT = '#!/bin/sh\necho "$@" >>"$0.calls"\necho "E: no network" >&2\nexit 100\n'


def test_what_keeps_slurm_from_being_installed_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cluster, "PROGRAMS", ("no-such-program",))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")

    def refused(message: str) -> None:
        with pytest.raises(NoSlurmError, match=message):
            require_packages()

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused("no-such-program missing, and not root to install it")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    apt = tmp_path / "apt-get"
    apt.write_text(APT)
    apt.chmod(0o755)
    refused("apt-get install slurmctld .* failed: E: no network")
    calls = (tmp_path / "apt-get.calls").read_text().splitlines()
    assert calls[0] == "-q update"
    assert calls[1].endswith("slurmctld slurmd slurm-client munge")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    refused("missing, and no apt-get to install it")
