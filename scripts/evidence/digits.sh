#!/usr/bin/env bash
# The digits study of docs/evidence.md: scripts/demo.sh's data, tokenizer and training, the test part
# held out, three training seeds; then models trained blind and in raster order. Data and checkpoints
# go to output/evidence/digits (or OUT=...), figures to docs/evidence (or RESULTS=...).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

OUT=${OUT:-output/evidence/digits}
SEEDS=${SEEDS:-1 2 3}
ABLATION_SEEDS=${ABLATION_SEEDS-1}
VQ_EPOCHS=${VQ_EPOCHS:-8}
EPOCHS=${EPOCHS:-15}
NUM_IMAGES=${NUM_IMAGES:-360}
SAMPLES=${SAMPLES:-500}
STEPS=${STEPS:-64 32 16 12 8 6 4}
SEARCH=${SEARCH:-}  # more flags
SIZE=32

train() { # train NAME SEED FLAGS...: a model into $OUT/NAME
    local folder=$OUT/$1 seed=$2
    shift 2
    "$PYTHON" main_lpd.py --model lpd_tiny --img_size $SIZE --class_num 10 \
        --vqgan_path "$OUT/tokenizer/vq.pt" --use_cached --cached_path "$OUT/cache" --flip_prob 0 \
        --group_sizes_list auto --epochs "$EPOCHS" --batch_size 32 --lr 1e-3 \
        --warmup_epochs 1 --lr_schedule cosine --proj_dropout 0 --bf16 --device cpu \
        --seed "$seed" --output_dir "$folder" --log_dir "$folder" --resume "$folder" "$@"
}

orders() { # orders MODEL RESULT FLAGS...: likelihoods of the held-out digits
    local model=$1 result=$2
    shift 2
    "$PYTHON" scripts/evaluate_orders.py --pretrained_ckpt "$OUT/$model/checkpoint-last.pth" \
        --cached_path "$OUT/held_out" --num_images "$NUM_IMAGES" --device cpu \
        --output "$RESULTS/$result.json" "$@"
}

samples() { # samples MODEL RESULT FLAGS...: generated digits, judged
    local model=$1 result=$2
    shift 2
    "$PYTHON" scripts/evidence/samples.py digits --vqgan_path "$OUT/tokenizer/vq.pt" \
        --pretrained_ckpt "$OUT/$model/checkpoint-last.pth" --data "$OUT/data" \
        --feature_extractor_weights "$OUT/classifier.pth" --samples "$SAMPLES" \
        --output "$RESULTS/$result.json" "$@"
}

main() {
    once data "$PYTHON" scripts/demo_digits.py prepare --output "$OUT/data"
    once tokenizer "$PYTHON" tokenizers/train_vq.py --data_path "$OUT/data" --img_size $SIZE \
        --flip_prob 0 --codebook_size 256 --ch 32 --ch_mult 1 1 1 --num_res_blocks 1 \
        --z_channels 32 --commitment 0.5 --revive_until 0 --batch_size 16 --epochs "$VQ_EPOCHS" \
        --lr 1e-3 --bf16 --device cpu --num_workers 0 --output_dir "$OUT/tokenizer"
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
