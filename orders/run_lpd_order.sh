#!/usr/bin/env bash
# Make the four published order files, 60,000 orders each.
#   bash orders/run_lpd_order.sh [OUTPUT_FOLDER [FLAGS OF run_lpd_order.py ...]]
set -euo pipefail
output=$(dirname "${BASH_SOURCE[0]}")
if [[ $# -gt 0 && $1 != -* ]]; then
    output=$1
    shift
fi
output=$(realpath -m "$output")
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/env.sh"

for setting in "256 20 2" "256 20 3" "256 32 2" "512 48 4"; do
    read -r size steps repulsion <<<"$setting"
    "$PYTHON" orders/run_lpd_order.py --img_size "$size" --generation_steps "$steps" \
        --repulsion_threshold "$repulsion" \
        --output_file "$output/res${size}_steps${steps}_repulsion${repulsion}.json" "$@"
done
