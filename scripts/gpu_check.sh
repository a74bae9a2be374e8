#!/usr/bin/env bash
# What a GPU does with this code, in one call of under nine minutes: the measurements of
# docs/performance.md's "On a GPU", then the tests that have a form for GPUs. Runs where there is no
# network, with the Python that is there (.venv's, else python3; PYTHON=... names another).
# Figures go to --output, else to $OUT, else to output/.
#
#     bash scripts/gpu_check.sh [--seconds 540] [--output gpu.json]
#     bash scripts/gpu_check.sh --quick --device cpu    # a tiny network, without graphs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi
exec "$PYTHON" scripts/gpu_check.py "$@"
