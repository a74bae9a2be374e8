# Sourced by the other scripts: go to the repository's root and settle on a Python.
#
# PYTHON=... uses an environment of your own (an activated conda environment: PYTHON=python);
# otherwise .venv is used, and made if it is missing.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
    bash environment_setup.sh >&2
    PYTHON=$PWD/.venv/bin/python
fi
