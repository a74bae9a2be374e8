#!/usr/bin/env bash
# How the files beside this one were made: by the commands of commit dfd05f8. No test runs it.
#
#     PYTHON=.venv/bin/python bash tests/kept/make.sh NEW_FOLDER
#
# Made anew they differ in times and, on another kind of processor, in the last bits of weights.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
PYTHON=$(realpath -s "${PYTHON:-python}")
mkdir "$1" && cd "$1"
code=$(mktemp -d)/lpd
git -C "$here" worktree add --quiet --detach "$code" dfd05f8
trap 'git -C "$here" worktree remove --force "$code"' EXIT
export PYTHONPATH=$code OMP_NUM_THREADS=1 TORCH_HOME=$code/torch_home CUDA_VISIBLE_DEVICES=

run() { "$PYTHON" "$here/small.py" "$@"; }

# 24 images of three classes, and a network that scores.
run scripts/demo_digits.py prepare --output digits
for class in 0 1 2; do
    mkdir -p "images/$class"
    find "digits/train/$class" -name '*.png' | sort | head -n 8 | xargs cp -t "images/$class"
done
run --coarse scripts/demo_digits.py features --data digits --output digits.pth

run --coarse tokenizers/train_vq.py --data_path images --img_size 32 --codebook_size 32 \
    --codebook_embed_dim 4 --ch 32 --ch_mult 1 1 1 --num_res_blocks 1 --z_channels 32 \
    --epochs 6 --batch_size 4 --lr 1e-3 --num_workers 0 --device cpu --output_dir vq
mv vq/vq.pt .

# A token cache; one that is unfinished, because an image of the second half could not be read; the
# tokens as the published release kept them; and a cache of those.
cache=(--vqgan_path vq.pt --img_size 32 --batch_size 4 --num_workers 0 --device cpu)
run main_cache.py --data_path images --cached_path cache "${cache[@]}"
cp -r images unread
last=$(find unread -name '*.png' | sort | tail -n 1)
echo damaged >"$last"
OMP_NUM_THREADS=1 "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node 2 \
    "$here/small.py" main_cache.py --data_path unread --cached_path unfinished "${cache[@]}" || true
"$PYTHON" - <<'END'
from pathlib import Path

import numpy as np

tokens = iter(np.load("cache/cache-tokens.npy"))
for image in sorted(Path("images").glob("*/*.png")):
    folder = Path("published_cache", image.parent.name)
    folder.mkdir(parents=True, exist_ok=True)
    plain, flipped = next(tokens).astype(np.int64)
    np.savez(folder / image.stem, indices=plain, indices_flip=flipped)
END
run scripts/convert_cache.py --published_path published_cache --cached_path converted_cache \
    --vqgan_path vq.pt --num_workers 1

for form in json npy; do
    run orders/run_lpd_order.py --img_size 32 --vqgan_stride 4 --generation_steps 6 \
        --repulsion_threshold 2 --seed 3 --num_runs 24 --max_workers 1 \
        --output_file "orders/orders.$form"
done

# Three epochs of six steps. The last save but one is that of step 10, in the second epoch: it
# becomes the checkpoint, and what the whole run ends with the weights in published form.
model=(--model lpd_tiny --img_size 32 --class_num 3 --vqgan_path vq.pt --device cpu)
training=("${model[@]}" --use_cached --cached_path cache --group_sizes_list auto --epochs 3
    --batch_size 4 --lr 1e-2 --lr_schedule constant --warmup_epochs 1 --save_steps 10
    --output_dir training --log_dir training --log_every 1 --num_workers 0)
run main_lpd.py "${training[@]}"
"$PYTHON" - <<'END'
from argparse import Namespace

import torch

saved = torch.load("training/checkpoint-last.pth")
scaler = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}
published = {name: saved[name] for name in ("model", "epoch")}
published |= {"scaler": scaler, "args": Namespace(**saved["args"])}
torch.save(published, "published.pth")
END
mv training/checkpoint-previous.pth training/checkpoint-last.pth
mv training/events.out.tfevents.* training/events.out.tfevents.1700000000.host.1.0
rm training/checkpoint-?.pth

# The marker of a run that was told to stop; when it was is by chance.
"$PYTHON" "$here/small.py" main_lpd.py "${training[@]}" --epochs 100000 --output_dir stopped \
    --log_dir stopped &
until [ -e stopped/checkpoint-last.pth ]; do sleep 0.1; done
kill -USR1 $!
wait $! || true
mv stopped/interrupted.json training/

run scripts/compute_stats.py --images images --img_size 32 --features --out stats.npz \
    --feature_extractor digits --feature_extractor_weights digits.pth --num_workers 0 --device cpu

scoring=(--feature_extractor digits --feature_extractor_weights digits.pth --fid_stats stats.npz
    --num_workers 0 --device cpu)
sampling=("${model[@]}" --pretrained_ckpt published.pth --num_images 6 --eval_bsz 4
    --generation_steps 6 --order lpd --lpd_order_file orders/orders.npy "${scoring[@]}")
run main_lpd.py --evaluate "${sampling[@]}" --cfg 3 --metrics fid,is,prc \
    --output_dir samples --log_dir samples
for images in images samples/images; do
    run main_lpd.py --images "$images" "${scoring[@]}"
done
run scripts/search_cfg.py --cfgs 1 3 "${sampling[@]}" --output_dir search >printed.txt
mv printed.txt search/

run scripts/convert_checkpoint.py published.pth converted --results samples/metrics.json
study=(--pretrained_ckpt published.pth --cached_path cache --num_images 8 --device cpu)
run scripts/evaluate_orders.py "${study[@]}" --orders lpd:2 random raster --steps 64 6 \
    --output study.json
run scripts/evaluate_orders.py "${study[@]}" --search --steps 6 --repulsions 0 2 \
    --proximities 1 3 --shapes rule 2 --output order_search.json
mkdir tables
run scripts/evidence/tables.py nll study.json >tables/nll.md
run scripts/evidence/tables.py prices study.json >tables/prices.md
run scripts/evidence/tables.py search order_search.json >tables/search.md

"$PYTHON" - "$here" <<'END'
import json
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from results import results
from small import REPLACED

for table, value in REPLACED:
    table["lpd_tiny"] = value
Path("results.json").write_text(json.dumps(results(Path())) + "\n")
END

# What says where and by whom, and what is not read again, is left out.
grep -rIl "$code/" . | xargs sed -i "s|$code/||g"
sed -i "s/ on .*, in '.*', git/ on host, in '\/lpd', git/" training/commands.sh
mv training/commands.sh training/kept
find . -name commands.sh -delete -o -name log.txt -delete -o -name '.*lock*' -delete
mv training/kept training/commands.sh
rm -r digits vq unread stopped samples/events.out.tfevents.*
xz -9 vq.pt digits.pth
