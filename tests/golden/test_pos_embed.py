"""Position resize against numbers of the published release."""

from pathlib import Path

import numpy as np
import torch

from training.checkpoint import resize_pos_embed


def test_resize_8x8_to_16x16() -> None:
    path = Path(__file__).parent / "data" / "pos_embed_interpolation.npz"
    with np.load(path, allow_pickle=False) as file:
        small = torch.from_numpy(file["pos_embed_8x8"])
        large = torch.from_numpy(file["pos_embed_16x16"])
    resized = resize_pos_embed(small, 256)
    assert torch.equal(resized[:, 0], small[:, 0])
    assert (resized - large).abs().max() < 1e-6
