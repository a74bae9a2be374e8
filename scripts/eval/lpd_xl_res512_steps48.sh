#!/usr/bin/env bash
# LPD-XL, 512 px, 48 steps. Published (ImageNet, 50,000 images): FID 2.10, IS 326.0.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setups/eval.sh"
evaluate lpd_xl 512 48 4 6.0 "$@"
