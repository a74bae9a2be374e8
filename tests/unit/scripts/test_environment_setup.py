"""`environment_setup.sh` with a real venv of no packages, and with a stand-in for conda."""

import shutil
import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from tests.commands import ROOT
from tests.unit.scripts.conftest import Home

# Keeps environments as folders: run -n NAME python ...
CONDA = """case "$*" in
create*) mkdir -p "$HOME/envs/$4" ;;
*--version) [ -d "$HOME/envs/$3" ] ;;
*sys.prefix*) echo "$HOME/envs/$3" ;;
esac
"""


@pytest.fixture
def setup(home: Home) -> Callable[..., CompletedProcess]:
    """Start the script in a folder with requirements that need no network."""
    shutil.copy(ROOT / "environment_setup.sh", home.path)
    (home.path / "requirements.txt").write_text("# nothing\n")
    line, own = ["bash", "environment_setup.sh"], {"BASE_PYTHON": sys.executable}
    return lambda *words, **variables: home.run([*line, *words], 120, **{**own, **variables})


def test_venv_is_made_once_and_again_when_requirements_change(home: Home, setup) -> None:
    requirements = home.path / "requirements.txt"
    # A broken install is not taken for a good one.
    requirements.write_text("./no-such-package\n")
    assert setup().returncode != 0
    for installs, wanted in ((True, "# nothing\n"), (False, "# nothing\n"), (True, "# still\n")):
        requirements.write_text(wanted)
        done = setup()
        assert done.returncode == 0 and ("Installing" in done.stdout) == installs, done.stderr
    assert (home.path / ".venv/bin/python").exists()


def test_conda_environment_by_name(home: Home, setup) -> None:
    home.program("conda", CONDA)
    for _ in range(2):  # the second has nothing to do
        done = setup("lpd")
        assert done.returncode == 0, done.stderr
    install = "python -m pip install --quiet --disable-pip-version-check -r requirements.txt"
    assert [call for call in home.calls("conda") if "create" in call or "install" in call] == [
        "create -y -n lpd python=3.11",
        f"run --no-capture-output -n lpd {install}",
    ]


def test_bad_calls_end_in_one_line(setup) -> None:
    for done, message in (
        (setup("lpd"), "conda is not on the PATH"),
        (setup("a", "b"), "expected at most one"),
        (setup(BASE_PYTHON="no-such-python"), "not Python 3.11 or newer"),
    ):
        assert done.returncode == 2 and message in done.stderr
        assert done.stderr.startswith("error: environment_setup.sh: ")
