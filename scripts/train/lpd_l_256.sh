#!/usr/bin/env bash
# LPD-L, 256 px: 450 epochs from scratch; published on 32 GPUs, 64 images on each.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setups/recipe.sh"
train lpd_l 256 64 "${FROM_SCRATCH[@]}" "$@"
