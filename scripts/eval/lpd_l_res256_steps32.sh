#!/usr/bin/env bash
# LPD-L, 256 px, 32 steps. Published (ImageNet, 50,000 images): FID 2.29, IS 282.7.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setups/eval.sh"
evaluate lpd_l 256 32 2 5.4 "$@"
