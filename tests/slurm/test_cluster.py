"""What the tests of this folder say where there can be no Slurm."""

import os
from pathlib import Path

import pytest

from tests.slurm import cluster
from tests.slurm.cluster import NoSlurmError, require_packages


@pytest.fixture(autouse=True)
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lacks a program."""
    monkeypatch.setattr(cluster, "PROGRAMS", ("no-such-program",))


def test_missing_packages_need_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NoSlurmError, match="no-such-program missing, and not root to install it"):
        require_packages()


def test_missing_packages_need_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoSlurmError, match="missing, and no apt-get to install it"):
        require_packages()


def test_what_apt_says_is_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text('#!/bin/sh\necho "$@" >>"$0.calls"\necho "E: no network" >&2\nexit 100\n')
    apt.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(NoSlurmError, match="apt-get install slurmctld .* failed: E: no network"):
        require_packages()
    calls = (tmp_path / "apt-get.calls").read_text().splitlines()
    assert calls[0] == "-q update"
    assert calls[1].endswith("slurmctld slurmd slurm-client munge")
