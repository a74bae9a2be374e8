#!/usr/bin/env bash
# The slow tests: full-size models, the demo's whole pipeline, jobs on a real two-node Slurm, the numbers
# once more with the kernels of other processors (tests/integration/test_processors.py). Two processes
# share the test files, each on one thread. Arguments go to pytest; -n 0 runs them one after another,
# --long runs the full form of tests that have a short one too. Slurm and a browser are installed if
# they are missing and this is root, Gradio and a client of browsers with pip; what is skipped is
# listed with the reason.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
"$PYTHON" -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
    -r requirements-app.txt -r tests/app/requirements.txt ||
    echo "test_long.sh: pip could not install what the page needs; its tests will be skipped" >&2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$PYTHON" -m pytest -m slow -rs -n 2 --dist loadscope --no-loadscope-reorder \
    --durations=10 "$@"
