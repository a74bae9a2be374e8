#!/usr/bin/env bash
# LPD-XXL, 256 px, 20 steps. Published (ImageNet, 50,000 images): FID 2.00, IS 337.6.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setups/eval.sh"
evaluate lpd_xxl 256 20 3 5.9 "$@"
