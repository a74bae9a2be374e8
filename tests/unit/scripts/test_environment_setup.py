"""`environment_setup.sh` with a real venv of no packages, and with a stand-in for conda.

Conda itself is not exercised: its channels may be out of reach where the tests run.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT

CONDA = """#!/usr/bin/env bash
# Keeps environments as folders; `python` in them is the real one with another prefix.
echo "$@" >>"$HOME/calls"
case $1 in
create) mkdir -p "$HOME/envs/$4" ;;
run)
    shift
    [ "$1" != --no-capture-output ] || shift
    env=$HOME/envs/$2
    shift 3
    [ -d "$env" ] || exit 1
    case "$*" in
    --version) echo Python 3.11 ;;
    -c*) echo "$env" ;;
    *) echo "pip $*" >>"$HOME/calls" ;;
    esac
    ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the script and requirements that need no network."""
    shutil.copy(ROOT / "environment_setup.sh", tmp_path)
    (tmp_path / "requirements.txt").write_text("# nothing\n")
    return tmp_path


def setup(checkout: Path, *arguments: str, path: str = "/usr/bin:/bin", **variables: str):
    environment = {"PATH": path, "HOME": str(checkout), "BASE_PYTHON": sys.executable, **variables}
    options = dict(cwd=checkout, capture_output=True, text=True, timeout=120, check=False)
    return subprocess.run(["bash", "environment_setup.sh", *arguments], env=environment, **options)


def test_venv_is_made_once_and_again_when_requirements_change(checkout: Path) -> None:
    requirements = checkout / "requirements.txt"
    # A broken install is not taken for a good one.
    requirements.write_text("./no-such-package\n")
    assert setup(checkout).returncode != 0
    requirements.write_text("# nothing\n")
    for installs in (True, False):
        done = setup(checkout)
        assert done.returncode == 0 and ("Installing" in done.stdout) == installs, done.stderr
    assert (checkout / ".venv/bin/python").exists()
    requirements.write_text("# still nothing\n")
    assert "Installing" in setup(checkout).stdout


def test_conda_environment_by_name(checkout: Path) -> None:
    tools = checkout / "tools"
    tools.mkdir()
    (tools / "conda").write_text(CONDA)
    (tools / "conda").chmod(0o755)
    path = f"{tools}:/usr/bin:/bin"
    calls = []
    for _ in range(2):
        done = setup(checkout, "lpd", path=path)
        assert done.returncode == 0, done.stderr
        calls.append((checkout / "calls").read_text())
        (checkout / "calls").unlink()
    assert "create -y -n lpd python=3.11" in calls[0]
    assert "pip -m pip install --quiet --disable-pip-version-check -r requirements.txt" in calls[0]
    assert "create" not in calls[1] and "install" not in calls[1]


def test_bad_calls_end_in_one_line(checkout: Path) -> None:
    for done, message in (
        (setup(checkout, "lpd"), "conda is not on the PATH"),
        (setup(checkout, "a", "b"), "expected at most one"),
        (setup(checkout, BASE_PYTHON="no-such-python"), "not Python 3.11 or newer"),
    ):
        assert done.returncode == 2 and message in done.stderr
        assert done.stderr.startswith("error: environment_setup.sh: ")
