#!/usr/bin/env bash
# LPD-L, 256 px, 20 steps. Published (ImageNet, 50,000 images): FID 2.40, IS 284.5.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setups/eval.sh"
evaluate lpd_l 256 20 2 4.8 "$@"
