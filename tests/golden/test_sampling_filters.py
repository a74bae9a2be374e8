"""Temperature, top-k and top-p against numbers of the published release."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from models.sampling import SamplingSettings, filtered_probabilities

FILE = np.load(Path(__file__).parent / "data" / "sampling_filters.npz", allow_pickle=False)


@pytest.mark.parametrize("key", [key for key in FILE.files if key.startswith("probs")])
def test_filtered_probabilities(key: str) -> None:
    temperature, top_k, top_p = re.fullmatch(r"probs_T([\d.]+)_k(\d+)_p([\d.]+)", key).groups()
    settings = SamplingSettings(
        temperature=float(temperature), top_k=int(top_k), top_p=float(top_p)
    )
    probs = filtered_probabilities(torch.from_numpy(FILE["logits"]), settings)
    golden = torch.from_numpy(FILE[key])
    assert torch.equal(probs > 0, golden > 0)
    assert (probs - golden).abs().max() < 1e-6
