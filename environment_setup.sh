#!/usr/bin/env bash
# Set up the Python environment of this project.
#
#   bash environment_setup.sh              a virtual environment in .venv
#   bash environment_setup.sh ENV_NAME     a conda environment of that name
#
# A second run is a quick no-op unless requirements.txt has changed. BASE_PYTHON names the
# interpreter that makes .venv (default python3; 3.11 or newer, as the pinned packages want).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
    echo "error: environment_setup.sh: $1" >&2
    exit 2
}

[ $# -le 1 ] || fail "found $# arguments, expected at most one, the name of a conda environment"

# Which requirements an environment was made from; written last, so that a broken install is redone.
wanted=$(sha256sum requirements.txt | cut -d ' ' -f 1)

install() { # install STAMP COMMAND...: run pip through COMMAND
    local stamp=$1
    shift
    echo "Installing requirements.txt (some 3 GB; a minute or two on a fast connection) ..."
    "$@" -m pip install --quiet --disable-pip-version-check -r requirements.txt ||
        fail "pip could not install requirements.txt (its own message is above)"
    echo "$wanted" >"$stamp"
}

if [ $# -eq 1 ]; then
    name=$1
    [ -n "$name" ] || fail "found an empty name, expected that of a conda environment"
    command -v conda >/dev/null || fail "conda is not on the PATH, expected it for environment '$name'"
    if ! conda run -n "$name" python --version >/dev/null 2>&1; then
        conda create -y -n "$name" python=3.11
    fi
    stamp=$(conda run -n "$name" python -c 'import sys; print(sys.prefix)')/lpd-requirements.sha256
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        install "$stamp" conda run --no-capture-output -n "$name" python
    fi
    echo "The environment is ready: conda activate $name"
else
    python=${BASE_PYTHON:-python3}
    stamp=.venv/lpd-requirements.sha256
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || ! .venv/bin/python -c ''; then
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
            fail "$python is not Python 3.11 or newer, expected one that is (BASE_PYTHON=...)"
        "$python" -m venv .venv || fail "$python cannot make a virtual environment (python3-venv?)"
        install "$stamp" .venv/bin/python
    fi
    echo "The environment is ready: source .venv/bin/activate"
fi
