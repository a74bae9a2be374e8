"""`environment_setup.sh` with a real venv of no packages, and with a stand-in for conda.

Conda itself is not exercised: its channels may be out of reach where the tests run.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT

# Keeps environments as folders: run -n NAME python ...
CONDA = """#!/usr/bin/env bash
echo "$@" >>"$HOME/calls"
case "$*" in
create*) mkdir -p "$HOME/envs/$4" ;;
*--version) [ -d "$HOME/envs/$3" ] ;;
*sys.prefix*) echo "$HOME/envs/$3" ;;
esac
"""


@pytest.fixture
def setup(tmp_path: Path):
    """Start the script in a folder with requirements that need no network."""
    shutil.copy(ROOT / "environment_setup.sh", tmp_path)
    (tmp_path / "requirements.txt").write_text("# nothing\n")

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        own = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "BASE_PYTHON": sys.executable}
        options = dict(cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        command = ["bash", "environment_setup.sh", *arguments]
        return subprocess.run(command, env={**own, **variables}, **options)

    return run


def test_venv_is_made_once_and_again_when_requirements_change(tmp_path: Path, setup) -> None:
    requirements = tmp_path / "requirements.txt"
    # A broken install is not taken for a good one.
    requirements.write_text("./no-such-package\n")
    assert setup().returncode != 0
    for installs, wanted in ((True, "# nothing\n"), (False, "# nothing\n"), (True, "# still\n")):
        requirements.write_text(wanted)
        done = setup()
        assert done.returncode == 0 and ("Installing" in done.stdout) == installs, done.stderr
    assert (tmp_path / ".venv/bin/python").exists()


def test_conda_environment_by_name(tmp_path: Path, setup) -> None:
    (tmp_path / "conda").write_text(CONDA)
    (tmp_path / "conda").chmod(0o755)
    calls = []
    for _ in range(2):
        done = setup("lpd", PATH=f"{tmp_path}:/usr/bin:/bin")
        assert done.returncode == 0, done.stderr
        calls.append((tmp_path / "calls").read_text())
        (tmp_path / "calls").unlink()
    assert "create -y -n lpd python=3.11" in calls[0]
    install = "python -m pip install --quiet --disable-pip-version-check -r requirements.txt"
    assert f"run --no-capture-output -n lpd {install}\n" in calls[0]
    assert "create" not in calls[1] and "install" not in calls[1]


def test_bad_calls_end_in_one_line(setup) -> None:
    for done, message in (
        (setup("lpd"), "conda is not on the PATH"),
        (setup("a", "b"), "expected at most one"),
        (setup(BASE_PYTHON="no-such-python"), "not Python 3.11 or newer"),
    ):
        assert done.returncode == 2 and message in done.stderr
        assert done.stderr.startswith("error: environment_setup.sh: ")
