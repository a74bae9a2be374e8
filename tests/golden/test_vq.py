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


def test_latents_and_indices(model, golden):
    torch.testing.assert_close(
        model.encode(golden["images"]), golden["pre_quant"], atol=1e-4, rtol=0
    )
    assert torch.equal(model.encode_indices(golden["images"]), golden["indices"].long())


def test_decoded_images(model, golden):
    decoded = model.decode_code(golden["decode_indices"].long())
    torch.testing.assert_close(decoded, golden["decoded"], atol=1e-3, rtol=0)


def test_channels_last_has_the_same_indices(model, golden):
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    images = golden["images"].contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.encode(images), golden["pre_quant"], atol=1e-4, rtol=0)
    assert torch.equal(model.encode_indices(images), golden["indices"].long())
