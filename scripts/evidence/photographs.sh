#!/usr/bin/env bash
# The study on natural images of docs/evidence.md: crops of scikit-learn's two photographs, 16 x 16
# tokens of 4 x 4 pixels, a part of each photograph held out. Data and checkpoints go to
# output/evidence/photographs (or OUT=...), figures to docs/evidence (or RESULTS=...).
set -euo pipefail
DATA_SET=photographs
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

SEEDS=${SEEDS:-1}
VQ_EPOCHS=${VQ_EPOCHS:-2}
EPOCHS=${EPOCHS:-3}
STEPS=${STEPS:-256 128 64 32 20 16 12 8}
SIZE=64
TOKENIZER=()
TRAINING=(--class_num 2 --batch_size 16)
ORDERS=(--batch_size 12 ${NUM_IMAGES:+--num_images "$NUM_IMAGES"})  # by default all
JUDGING=()

crops() { # the images, all or none: the command wants a new folder, also after it was stopped
    [ -e "$OUT/data" ] && return
    rm -rf "$OUT/data.unfinished"
    "$PYTHON" scripts/evidence/photographs.py --output "$OUT/data.unfinished" \
        --spacing "${SPACING:-10}"
    mv -T "$OUT/data.unfinished" "$OUT/data"
}

main() {
    once data crops
    once tokenizer tokenizer
    once cache cache "$OUT/data" cache
    once held_out cache "$OUT/data/test" held_out
    for seed in $SEEDS; do
        once "train-$seed" train "seed$seed" "$seed"
        once "orders-$seed" orders "seed$seed" "photographs_$seed" \
            --plot "$RESULTS/photographs_$seed.png" \
            --orders lpd random raster --steps $STEPS
        once "thresholds-$seed" orders "seed$seed" "photographs_thresholds_$seed" --steps 32 20 8 \
            --orders lpd:1 lpd:0 lpd:2 lpd:3 lpd:4 lpd:0:100
        once "samples-$seed" samples "seed$seed" "photographs_samples_$seed" \
            --steps $STEPS \
            --grid "$RESULTS/photographs_samples_$seed.png" --grid_steps 256 20
    done
    once samples-again samples "seed${SEEDS%% *}" photographs_samples_again --steps 20 8 --seed 1
    once search orders "seed${SEEDS%% *}" photographs_search --search --steps 20 $SEARCH
}

main
