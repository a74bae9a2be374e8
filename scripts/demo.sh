#!/usr/bin/env bash
# The main job from nothing, on real data that needs no download: scikit-learn's handwritten digits.
# Leaves samples.png, metrics.json, nll.json, nll.png, TensorBoard curves and checkpoints in
# output/demo/ (or OUT=...), in under ten minutes on two CPU cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

OUT=${OUT:-output/demo}
STEPS=${STEPS:-12}
VQ_EPOCHS=${VQ_EPOCHS:-8}
EPOCHS=${EPOCHS:-15}
NUM_IMAGES=${NUM_IMAGES:-500}
HELD_OUT=${HELD_OUT:-360}  # digits whose likelihood is measured
PROCESSES=${PROCESSES:-1}
# Threads that wait asleep: on a machine with other work, spinning ones take the cores from it.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
# Handwritten digits stay 32 x 32 pixels, 8 x 8 tokens of 4 x 4 pixels.
SIZE=32

say() { printf '\n== %s\n' "$*" >&2; }
launch() { "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" "$@"; }

if [ -n "$(ls -A "$OUT" 2>/dev/null)" ] && [ ! -e "$OUT/.lpd-demo" ]; then
    echo "error: OUT: $OUT is not empty and not an earlier demo, expected a new folder" >&2
    exit 2
fi
rm -rf "$OUT"
mkdir -p "$OUT"
touch "$OUT/.lpd-demo"

say "1/9 digits -> $OUT/data"
"$PYTHON" scripts/demo_digits.py prepare --output "$OUT/data"

say "2/9 tokenizer"
"$PYTHON" tokenizers/train_vq.py --data_path "$OUT/data" --img_size $SIZE --flip_prob 0 \
    --codebook_size 256 --ch 32 --ch_mult 1 1 1 --num_res_blocks 1 --z_channels 32 \
    --commitment 0.5 --revive_until 0 --batch_size 16 --epochs "$VQ_EPOCHS" --lr 1e-3 \
    --bf16 --device cpu --num_workers 0 --output_dir "$OUT/tokenizer"

say "3/9 token cache"
launch main_cache.py --data_path "$OUT/data" --img_size $SIZE \
    --vqgan_path "$OUT/tokenizer/vq.pt" --cached_path "$OUT/cache" --device cpu --num_workers 0

say "4/9 generation orders"
"$PYTHON" orders/run_lpd_order.py --img_size $SIZE --vqgan_stride 4 --generation_steps "$STEPS" \
    --repulsion_threshold 1 --num_runs "$NUM_IMAGES" --output_file "$OUT/orders.npy"

say "5/9 feature extractor"
"$PYTHON" scripts/demo_digits.py features --data "$OUT/data" --output "$OUT/digits_classifier.pth"

say "6/9 LPD training"
launch main_lpd.py --model lpd_tiny --img_size $SIZE --class_num 10 \
    --vqgan_path "$OUT/tokenizer/vq.pt" --use_cached --cached_path "$OUT/cache" --flip_prob 0 \
    --group_sizes_list auto --epochs "$EPOCHS" --batch_size $((32 / PROCESSES)) --lr 1e-3 \
    --warmup_epochs 1 --lr_schedule cosine --proj_dropout 0 --bf16 --device cpu \
    --output_dir "$OUT" --log_dir "$OUT"

say "7/9 evaluation, $STEPS steps"
launch main_lpd.py --evaluate --resume "$OUT" --model lpd_tiny --img_size $SIZE --class_num 10 \
    --vqgan_path "$OUT/tokenizer/vq.pt" --num_images "$NUM_IMAGES" --eval_bsz 100 \
    --generation_steps "$STEPS" --order lpd --lpd_order_file "$OUT/orders.npy" \
    --cfg 2 --bf16 --device cpu \
    --fid_stats "$OUT/data/test" --feature_extractor digits \
    --feature_extractor_weights "$OUT/digits_classifier.pth" \
    --output_dir "$OUT" --log_dir "$OUT"

say "8/9 what parallel decoding costs on held-out digits"
launch main_cache.py --data_path "$OUT/data/test" --img_size $SIZE \
    --vqgan_path "$OUT/tokenizer/vq.pt" --cached_path "$OUT/held_out" --device cpu --num_workers 0
launch scripts/evaluate_orders.py --pretrained_ckpt "$OUT/checkpoint-last.pth" \
    --cached_path "$OUT/held_out" --num_images "$HELD_OUT" --device cpu \
    --orders lpd random raster --steps 64 "$STEPS" \
    --output "$OUT/nll.json" --plot "$OUT/nll.png"

say "9/9 report"
"$PYTHON" scripts/demo_digits.py report --data "$OUT/data" --samples "$OUT/images" \
    --metrics "$OUT/metrics.json" --grid "$OUT/samples.png"
