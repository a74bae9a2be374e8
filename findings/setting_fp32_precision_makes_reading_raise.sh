#!/usr/bin/env bash
# torch.backends: once `fp32_precision` is set, which PyTorch recommends since 2.9, reading an older
# setting raises - and what is set for oneDNN alone is set for every backend.
#
# Guess:     reading a setting never fails; PyTorch's own `cudnn.flags(allow_tf32=False)` works beside
#            PyTorch's own `cudnn.conv.fp32_precision`; `mkldnn.fp32_precision` is oneDNN's.
# Behaviour: torch.get_float32_matmul_precision(), cudnn.allow_tf32 and cuda.matmul.allow_tf32 raise
#            RuntimeError where old and new settings do not say the same, also if only a new one was
#            ever used; cudnn.flags reads one of them and raises before its block is entered.
#            mkldnn.fp32_precision reads oneDNN's setting and writes torch.backends.fp32_precision:
#            after mkldnn.fp32_precision = "ieee" that of cudnn.conv is "ieee", and was "tf32".
# Seen with: torch 2.15.0, Python 3.11, on a CPU.
# Exits 1 if it is otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.15.0 numpy==2.4.6
cd "$folder"
cat >observe.py <<'PYTHON'
import sys

import torch

backends = torch.backends


def result(call):
    try:
        return call()
    except RuntimeError as error:
        return f"raises {type(error).__name__}"


def flags():
    with backends.cudnn.flags(enabled=True, allow_tf32=False):
        return "works"


if sys.argv[1] == "matmul":
    backends.mkldnn.matmul.fp32_precision = "bf16"
    found = result(torch.get_float32_matmul_precision)
    print("mkldnn.matmul = bf16: get_float32_matmul_precision", found)
elif sys.argv[1] == "conv":
    backends.cudnn.conv.fp32_precision = "ieee"
    print("cudnn.conv = ieee: cudnn.flags(allow_tf32=False)", result(flags))
else:
    backends.mkldnn.fp32_precision = "ieee"
    found = backends.cudnn.conv.fp32_precision
    print("mkldnn = ieee: torch.backends is", backends.fp32_precision, "and cudnn.conv", found)
PYTHON
for setting in matmul conv mkldnn; do
    "$folder/venv/bin/python" observe.py "$setting"
done | tee found
diff found - <<'EXPECTED'
mkldnn.matmul = bf16: get_float32_matmul_precision raises RuntimeError
cudnn.conv = ieee: cudnn.flags(allow_tf32=False) raises RuntimeError
mkldnn = ieee: torch.backends is ieee and cudnn.conv ieee
EXPECTED
