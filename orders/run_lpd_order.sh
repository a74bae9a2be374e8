#!/usr/bin/env bash
# Make the four published order files.
#   bash orders/run_lpd_order.sh [OUTPUT_FOLDER [FLAGS OF run_lpd_order.py ...]]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
output="${1:-orders}"
python="python"
[[ -x .venv/bin/python ]] && python=".venv/bin/python"

for setting in "256 20 2" "256 20 3" "256 32 2" "512 48 4"; do
    read -r size steps repulsion <<<"$setting"
    "$python" orders/run_lpd_order.py --img_size "$size" --generation_steps "$steps" \
        --repulsion_threshold "$repulsion" \
        --output_file "$output/res${size}_steps${steps}_repulsion${repulsion}.json" "${@:2}"
done
