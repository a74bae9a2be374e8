# Sourced by the studies: settle on a Python, do every stage once, and the stages they share.
#
# A stage that has ended well leaves a stamp in $OUT/done, so a study that was stopped goes on where
# it was. Studies take one core each and give way to other work. Each says its DATA_SET, the SIZE of
# images, and in arrays what else its TOKENIZER, TRAINING, ORDERS and JUDGING take.
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
renice -n 10 -p $$ >/dev/null
OUT=${OUT:-output/evidence/$DATA_SET}
RESULTS=${RESULTS:-docs/evidence}
SAMPLES=${SAMPLES:-500}
SEARCH=${SEARCH:-}  # more flags

once() { # once STAGE COMMAND...: run the command unless it has ended well before
    local stage=$1 started=$SECONDS
    shift
    [ -e "$OUT/done/$stage" ] && return
    mkdir -p "$OUT/done" "$RESULTS"
    printf '\n== %s\n' "$stage" >&2
    "$@"
    echo "$((SECONDS - started)) s" >"$OUT/done/$stage"
}

tokenizer() {
    "$PYTHON" tokenizers/train_vq.py --data_path "$OUT/data" --img_size $SIZE "${TOKENIZER[@]}" \
        --codebook_size 256 --ch 32 --ch_mult 1 1 1 --num_res_blocks 1 --z_channels 32 \
        --batch_size 16 --epochs "$VQ_EPOCHS" --lr 1e-3 --bf16 --device cpu --num_workers 0 \
        --output_dir "$OUT/tokenizer"
}

cache() { # cache FOLDER NAME: tokens of an image folder
    "$PYTHON" main_cache.py --data_path "$1" --img_size $SIZE --vqgan_path "$OUT/tokenizer/vq.pt" \
        --cached_path "$OUT/$2" --device cpu --num_workers 0
}

train() { # train NAME SEED FLAGS...: a model into $OUT/NAME
    local folder=$OUT/$1 seed=$2
    shift 2
    "$PYTHON" main_lpd.py --model lpd_tiny --img_size $SIZE "${TRAINING[@]}" \
        --vqgan_path "$OUT/tokenizer/vq.pt" --use_cached --cached_path "$OUT/cache" \
        --group_sizes_list auto --epochs "$EPOCHS" --lr 1e-3 \
        --warmup_epochs 1 --lr_schedule cosine --proj_dropout 0 --bf16 --device cpu \
        --seed "$seed" --output_dir "$folder" --log_dir "$folder" --resume "$folder" "$@"
}

orders() { # orders MODEL RESULT FLAGS...: likelihoods of the held-out images
    local model=$1 result=$2
    shift 2
    "$PYTHON" scripts/evaluate_orders.py --pretrained_ckpt "$OUT/$model/checkpoint-last.pth" \
        --cached_path "$OUT/held_out" "${ORDERS[@]}" --device cpu \
        --output "$RESULTS/$result.json" "$@"
}

samples() { # samples MODEL RESULT FLAGS...: generated images, judged
    local model=$1 result=$2
    shift 2
    "$PYTHON" scripts/evidence/samples.py "$DATA_SET" --vqgan_path "$OUT/tokenizer/vq.pt" \
        --pretrained_ckpt "$OUT/$model/checkpoint-last.pth" --data "$OUT/data" "${JUDGING[@]}" \
        --samples "$SAMPLES" --output "$RESULTS/$result.json" "$@"
}
