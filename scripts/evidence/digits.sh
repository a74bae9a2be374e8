#!/usr/bin/env bash
# The digits study of docs/evidence.md: scripts/demo.sh's data, tokenizer and training, the test part
# held out, three training seeds; then models trained blind and in raster order. Data and checkpoints
# go to output/evidence/digits (or OUT=...), figures to docs/evidence (or RESULTS=...).
set -euo pipefail
DATA_SET=digits
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

SEEDS=${SEEDS:-1 2 3}
ABLATION_SEEDS=${ABLATION_SEEDS-1}
VQ_EPOCHS=${VQ_EPOCHS:-8}
EPOCHS=${EPOCHS:-15}
STEPS=${STEPS:-64 32 16 12 8 6 4}
SIZE=32
TOKENIZER=(--flip_prob 0 --commitment 0.5 --revive_until 0)
TRAINING=(--class_num 10 --flip_prob 0 --batch_size 32)
ORDERS=(--num_images "${NUM_IMAGES:-360}")
JUDGING=(--feature_extractor_weights "$OUT/classifier.pth")

main() {
    once data "$PYTHON" scripts/demo_digits.py prepare --output "$OUT/data"
    once tokenizer tokenizer
    once cache cache "$OUT/data" cache
    once held_out cache "$OUT/data/test" held_out
    once classifier "$PYTHON" scripts/demo_digits.py features --data "$OUT/data" \
        --output "$OUT/classifier.pth"
    for seed in $SEEDS; do
        once "train-$seed" train "seed$seed" "$seed"
    done
    for seed in $SEEDS; do
        once "orders-$seed" orders "seed$seed" "digits_$seed" --plot "$RESULTS/digits_$seed.png" \
            --orders lpd random raster --steps $STEPS
        once "thresholds-$seed" orders "seed$seed" "digits_thresholds_$seed" --steps 16 8 4 \
            --orders lpd:1 lpd:0 lpd:2 lpd:3 lpd:4 lpd:0:100
        once "samples-$seed" samples "seed$seed" "digits_samples_$seed" \
            --steps $STEPS
    done
    once samples-guided samples "seed${SEEDS%% *}" digits_samples_guided --cfg 2 --steps 64 12 4
    once search orders "seed${SEEDS%% *}" digits_search --search --steps 8 $SEARCH
    for seed in $ABLATION_SEEDS; do
        once "train-blind-$seed" train "blind$seed" "$seed" --blind_queries
        once "train-raster-$seed" train "raster$seed" "$seed" --train_order raster
        for kind in blind raster; do
            once "$kind-$seed" orders "$kind$seed" "digits_${kind}_$seed" \
                --orders lpd random raster --steps $STEPS
        done
        once "samples-blind-$seed" samples "blind$seed" "digits_samples_blind_$seed" \
            --steps $STEPS
    done
}

main
