#!/usr/bin/env bash
# PyTorch on a CPU: ONEDNN_DEFAULT_FPMATH_MODE=BF16 rounds float32 convolutions to bfloat16 even where
# torch.backends.mkldnn.conv.fp32_precision is "ieee" - and leaves matrix products alone.
#
# Guess:     what is set in the program wins over a variable of the environment; and one variable
#            treats convolutions and matrix products alike.
# Behaviour: with "ieee" set for both, the relative error of a convolution is 2e-3 instead of 2e-7;
#            that of a matrix product stays 3e-7. So tokens, features and scores "in float32" are not,
#            and no setting of PyTorch's says so.
# Seen with: torch 2.15.0, Python 3.11, on a processor with AMX. Elsewhere (no bfloat16 products)
#            there is nothing to see, and it says so.
# Exits 1 if it is otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.15.0 numpy==2.4.6
cat >"$folder/errors.py" <<'PYTHON'
import sys

import torch


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    print("this processor has no bfloat16 products: nothing to see")
    sys.exit(0)
torch.manual_seed(0)
torch.backends.mkldnn.conv.fp32_precision = "ieee"
torch.backends.mkldnn.matmul.fp32_precision = "ieee"
image, kernel = torch.randn(1, 64, 56, 56), torch.randn(64, 64, 3, 3)
left, right = torch.randn(512, 512), torch.randn(512, 512)
convolution = error(torch.conv2d(image, kernel), torch.conv2d(image.double(), kernel.double()))
product = error(left @ right, left.double() @ right.double())
print(f"torch {torch.__version__}: convolution {convolution:.1e}, matrix product {product:.1e}")
expected = sys.argv[1] == "rounded"
sys.exit(0 if (convolution > 1e-4) == expected and product < 1e-5 else 1)
PYTHON
cd "$folder"
venv/bin/python errors.py exact
ONEDNN_DEFAULT_FPMATH_MODE=BF16 venv/bin/python errors.py rounded
