#!/usr/bin/env bash
# LPD-XL, 256 px, 32 steps. Published (ImageNet, 50,000 images): FID 1.92, IS 319.4.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setups/eval.sh"
evaluate lpd_xl 256 32 2 5.0 "$@"
