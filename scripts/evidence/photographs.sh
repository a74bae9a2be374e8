#!/usr/bin/env bash
# The study on natural images of docs/evidence.md: crops of scikit-learn's two photographs, 16 x 16
# tokens of 4 x 4 pixels, a part of each photograph held out. Data and checkpoints go to
# output/evidence/photographs (or OUT=...), figures to docs/evidence (or RESULTS=...).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

OUT=${OUT:-output/evidence/photographs}
SEEDS=${SEEDS:-1}
VQ_EPOCHS=${VQ_EPOCHS:-2}
EPOCHS=${EPOCHS:-3}
SPACING=${SPACING:-10}
NUM_IMAGES=${NUM_IMAGES:-}  # all
SAMPLES=${SAMPLES:-500}
STEPS=${STEPS:-256 128 64 32 20 16 12 8}
SEARCH=${SEARCH:-}  # more flags
SIZE=64

crops() { # the images, all or none: the command wants a new folder, also after it was stopped
    [ -e "$OUT/data" ] && return
    rm -rf "$OUT/data.unfinished"
    "$PYTHON" scripts/evidence/photographs.py --output "$OUT/data.unfinished" --spacing "$SPACING"
    mv -T "$OUT/data.unfinished" "$OUT/data"
}

train() { # train NAME SEED FLAGS...: a model into $OUT/NAME
    local folder=$OUT/$1 seed=$2
    shift 2
    "$PYTHON" main_lpd.py --model lpd_tiny --img_size $SIZE --class_num 2 \
        --vqgan_path "$OUT/tokenizer/vq.pt" --use_cached --cached_path "$OUT/cache" \
        --group_sizes_list auto --epochs "$EPOCHS" --batch_size 16 --lr 1e-3 \
        --warmup_epochs 1 --lr_schedule cosine --proj_dropout 0 --bf16 --device cpu \
        --seed "$seed" --output_dir "$folder" --log_dir "$folder" --resume "$folder" "$@"
}

orders() { # orders SEED RESULT FLAGS...: likelihoods of the held-out crops
    local seed=$1 result=$2
    shift 2
    "$PYTHON" scripts/evaluate_orders.py --pretrained_ckpt "$OUT/seed$seed/checkpoint-last.pth" \
        --cached_path "$OUT/held_out" --batch_size 12 --device cpu \
        ${NUM_IMAGES:+--num_images "$NUM_IMAGES"} --output "$RESULTS/$result.json" "$@"
}

samples() { # samples SEED RESULT FLAGS...: generated crops, judged
    local seed=$1 result=$2
    shift 2
    "$PYTHON" scripts/evidence/samples.py photographs --vqgan_path "$OUT/tokenizer/vq.pt" \
        --pretrained_ckpt "$OUT/seed$seed/checkpoint-last.pth" --data "$OUT/data" \
        --samples "$SAMPLES" --output "$RESULTS/$result.json" "$@"
}

main() {
    once data crops
    once tokenizer "$PYTHON" tokenizers/train_vq.py --data_path "$OUT/data" --img_size $SIZE \
        --codebook_size 256 --ch 32 --ch_mult 1 1 1 --num_res_blocks 1 --z_channels 32 \
        --batch_size 16 --epochs "$VQ_EPOCHS" --lr 1e-3 --bf16 --device cpu --num_workers 0 \
        --output_dir "$OUT/tokenizer"
    once cache cache "$OUT/data" cache
    once held_out cache "$OUT/data/test" held_out
    for seed in $SEEDS; do
        once "train-$seed" train "seed$seed" "$seed"
        once "orders-$seed" orders "$seed" "photographs_$seed" \
            --plot "$RESULTS/photographs_$seed.png" \
            --orders lpd random raster --steps $STEPS
        once "thresholds-$seed" orders "$seed" "photographs_thresholds_$seed" --steps 32 20 8 \
            --orders lpd:1 lpd:0 lpd:2 lpd:3 lpd:4 lpd:0:100
        once "samples-$seed" samples "$seed" "photographs_samples_$seed" \
            --steps $STEPS \
            --grid "$RESULTS/photographs_samples_$seed.png" --grid_steps 256 20
    done
    once samples-again samples "${SEEDS%% *}" photographs_samples_again --steps 20 8 --seed 1
    once search orders "${SEEDS%% *}" photographs_search --search --steps 20 $SEARCH
}

main
