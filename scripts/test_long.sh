#!/usr/bin/env bash
# The slow tests: full-size models, the demo's whole pipeline, jobs on a real two-node Slurm, the numbers
# once more with the kernels of other processors (tests/integration/test_processors.py); under 50
# minutes on 2 cores. Arguments go to pytest; --long runs the full form of tests that have a short one
# too. Slurm and a browser are installed if they are missing and this is root, Gradio and a client of
# browsers with pip; what is skipped is listed with the reason.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
"$PYTHON" -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
    -r requirements-app.txt -r tests/app/requirements.txt ||
    echo "test_long.sh: pip could not install what the page needs; its tests will be skipped" >&2
"$PYTHON" -m pytest -m slow -rs --durations=10 "$@"
