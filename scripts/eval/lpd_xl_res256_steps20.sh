#!/usr/bin/env bash
# LPD-XL, 256 px, 20 steps. Published (ImageNet, 50,000 images): FID 2.10, IS 326.7.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setups/eval.sh"
evaluate lpd_xl 256 20 2 4.9 "$@"
