# Sourced by the scripts in scripts/train/: the settings that all published recipes share.
#
#   bash scripts/train/lpd_l_256.sh [more flags of main_lpd.py, which win]
#   python scripts/cli/run.py -J lpd_l_256 -p PARTITION -A ACCOUNT -N 4 bash scripts/train/lpd_l_256.sh
#
# The same line starts a run and goes on with it. Paths and sizes come from the environment:
#   CACHED_PATH      token cache of main_cache.py; by default data/cache_256 or data/cache_512
#   VQGAN_PATH       the tokenizer that made it, a file or a published name (the default)
#   PRETRAINED_CKPT  512 px: the 256 px weights to start from, a file or a published name (the default)
#   OUTPUT_DIR       by default output/<name of the script>; scripts/cli/run.py sets it
#   ACCUM_ITER       batches per process and step, 1. The learning rate follows the global batch: on
#                    8 GPUs instead of 32, ACCUM_ITER=4 keeps the published one
#   NPROC_PER_NODE   by default one process per GPU
#   DEVICE           cuda; cpu for a small trial

source "$(dirname "${BASH_SOURCE[0]}")/train.sh"

# train MODEL SIZE BATCH_SIZE [FLAGS]: BATCH_SIZE images per process at a time
train() {
    local model=$1 size=$2 batch_size=$3
    shift 3
    launch main_lpd.py --model "$model" --img_size "$size" \
        --vqgan_path "${VQGAN_PATH:-llamagen}" \
        --use_cached --cached_path "${CACHED_PATH:-data/cache_$size}" --group_sizes_list auto \
        --batch_size "$batch_size" --accum_iter "${ACCUM_ITER:-1}" --blr 1e-4 --min_lr 1e-5 \
        --weight_decay 0.02 --grad_clip 3.0 --proj_dropout 0.1 --label_drop_prob 0.1 --bf16 \
        --device "${DEVICE:-cuda}" --save_minutes 20 \
        --output_dir "$OUTPUT_DIR" --log_dir "$OUTPUT_DIR" --resume "$OUTPUT_DIR" "$@"
}

# The published schedules.
FROM_SCRATCH=(--epochs 450 --warmup_epochs 50 --lr_schedule constant+cosine --lr_decay_start_epoch 400)
FROM_256=(--epochs 50 --warmup_epochs 1 --lr_schedule cosine)
