#!/usr/bin/env bash
# The slow tests: full-size models, the demo's whole pipeline, jobs on a real two-node Slurm (under 45
# minutes on 2 cores). Arguments go to pytest; --long runs the full form of tests that have a short one
# too. Slurm is installed if it is missing and this is root; what is skipped is listed with the reason.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
"$PYTHON" -m pytest -m slow -rs --durations=10 "$@"
