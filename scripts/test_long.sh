#!/usr/bin/env bash
# The slow tests: full-size models, the demo's whole pipeline, jobs on a real two-node Slurm, the numbers
# once more with the kernels of other processors (tests/integration/test_processors.py). Slurm's jobs
# have the machine for themselves: they end by the clock. After them two processes share the other
# test files, each on one thread. Arguments go to pytest, which then runs all one after another; --long
# runs the full form of tests that have a short one too. Slurm and a browser are installed if they are
# missing and this is root, Gradio and a client of browsers with pip; what is skipped is listed with
# the reason.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
"$PYTHON" -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
    -r requirements-app.txt -r tests/app/requirements.txt ||
    echo "test_long.sh: pip could not install what the page needs; its tests will be skipped" >&2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
slow=("$PYTHON" -m pytest -m slow -rs --durations=10)
[ $# -eq 0 ] || exec "${slow[@]}" "$@"
failed=0
"${slow[@]}" tests/slurm || failed=1
"${slow[@]}" --ignore tests/slurm -n 2 --dist loadscope --no-loadscope-reorder || failed=1
exit $failed
