#!/usr/bin/env bash
# The training of the digits demo in miniature, as a script for a cluster. $DIGITS holds tokenizer and
# token cache; arguments go to main_lpd.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/setups/train.sh"

launch main_lpd.py --model lpd_tiny --img_size 32 --class_num 10 \
    --vqgan_path "$DIGITS/vq.pt" --use_cached --cached_path "$DIGITS/cache" --flip_prob 0 \
    --group_sizes_list auto --batch_size 16 --lr 1e-3 --warmup_epochs 1 --lr_schedule cosine \
    --device cpu --save_intermediate_freq 1000 --log_every 1 \
    --output_dir "$OUTPUT_DIR" --log_dir "$OUTPUT_DIR" --resume "$OUTPUT_DIR" "$@"
