#!/usr/bin/env bash
# LPD-XL, 512 px: 50 epochs from the 256 px weights, 8 images per GPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setups/recipe.sh"
train lpd_xl 512 8 "${FROM_256[@]}" --pretrained_ckpt "${PRETRAINED_CKPT:-lpd_xl_256}" "$@"
