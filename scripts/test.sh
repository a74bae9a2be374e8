#!/usr/bin/env bash
# Style checks and all tests but the slow ones (under 15 minutes on 2 cores). Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m pytest -m "not slow" --durations=10 "$@"
