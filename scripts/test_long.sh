#!/usr/bin/env bash
# The slow tests: full-size models and the demo's whole pipeline (under 45 minutes on 2 cores).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
"$PYTHON" -m pytest -m slow --durations=10 "$@"
