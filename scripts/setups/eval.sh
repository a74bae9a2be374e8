# Sourced by the scripts in scripts/eval/: the settings that all published evaluations share.
#
#   bash scripts/eval/lpd_l_res256_steps20.sh [more flags of main_lpd.py, which win]
#
# Paths and sizes come from the environment:
#   PRETRAINED_CKPT, VQGAN_PATH, LPD_ORDER_FILE   a file, or a published name (the default: found in the
#                    cache of the Hub, else downloaded; python util/download.py NAME fetches ahead)
#   FID_STATS        reference statistics; by default those of ADM in fid_stats/, if they are there
#   OUTPUT_DIR       by default output/eval/<name of the script>
#   NUM_IMAGES       50000, a multiple of the 1,000 classes
#   EVAL_BSZ         64 images per GPU at a time
#   NPROC_PER_NODE   by default one process per GPU
#   DEVICE           cuda; cpu for a small trial

OUTPUT_DIR=${OUTPUT_DIR:-output/eval/$(basename "$0" .sh)}
source "$(dirname "${BASH_SOURCE[0]}")/train.sh"

# evaluate MODEL SIZE STEPS REPULSION CFG [FLAGS]
evaluate() {
    local model=$1 size=$2 steps=$3 repulsion=$4 cfg=$5
    shift 5
    local weights=${PRETRAINED_CKPT:-${model}_${size}}
    local orders=${LPD_ORDER_FILE:-res${size}_steps${steps}_repulsion${repulsion}}
    launch main_lpd.py --evaluate --model "$model" --img_size "$size" \
        --pretrained_ckpt "$weights" --vqgan_path "${VQGAN_PATH:-llamagen}" \
        --generation_steps "$steps" --order lpd --lpd_order_file "$orders" \
        --cfg "$cfg" --cfg_schedule linear --bf16 \
        --num_images "${NUM_IMAGES:-50000}" --eval_bsz "${EVAL_BSZ:-64}" \
        ${FID_STATS:+--fid_stats "$FID_STATS"} --device "${DEVICE:-cuda}" \
        --output_dir "$OUTPUT_DIR" --log_dir "$OUTPUT_DIR" "$@"
}
