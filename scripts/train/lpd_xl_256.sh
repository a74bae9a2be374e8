#!/usr/bin/env bash
# LPD-XL, 256 px: 450 epochs from scratch, 32 images per GPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setups/recipe.sh"
train lpd_xl 256 32 "${FROM_SCRATCH[@]}" "$@"
