"""The tokenizer computes what the published one computes (float32, CPU)."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.weights import fill_golden_weights
from tokenizers.vq_model import VQModel

GOLDEN = Path(__file__).parent / "data" / "vq_ds16_64px.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        model = VQModel()
    model.to_empty(device="cpu")
    fill_golden_weights(model)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_latents_and_indices(model, golden, memory_format):
    model = copy.deepcopy(model).to(memory_format=memory_format)
    images = golden["images"].contiguous(memory_format=memory_format)
    torch.testing.assert_close(model.encode(images), golden["pre_quant"], atol=1e-4, rtol=0)
    assert torch.equal(model.encode_indices(images), golden["indices"].long())


def test_decoded_images(model, golden):
    decoded = model.decode_code(golden["decode_indices"].long())
    torch.testing.assert_close(decoded, golden["decoded"], atol=1e-3, rtol=0)
