#!/usr/bin/env bash
# LPD-L, 512 px: 50 epochs from the 256 px weights, 16 images per GPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setups/recipe.sh"
train lpd_l 512 16 "${FROM_256[@]}" --pretrained_ckpt "${PRETRAINED_CKPT:-lpd_l_256}" "$@"
