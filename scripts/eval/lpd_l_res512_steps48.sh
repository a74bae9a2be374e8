#!/usr/bin/env bash
# LPD-L, 512 px, 48 steps. Published (ImageNet, 50,000 images): FID 2.54, IS 292.2.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setups/eval.sh"
evaluate lpd_l 512 48 4 7.3 "$@"
