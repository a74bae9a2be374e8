#!/usr/bin/env bash
# Style checks and all tests but the slow ones: two processes share the test files, each on one thread.
# Arguments go to pytest; -n 0 runs them one after another. What each folder took is then in
# tests/times.json; one line tells of each that took longer than tests/budget.json says.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$PYTHON" -m pytest -m "not slow" -n 2 --dist loadscope --durations=10 "$@"
