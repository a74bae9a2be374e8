"""The centre crop equals ADM's, pixel for pixel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.pictures import center_crop

DATA = Path(__file__).parent / "data" / "center_crop.npz"


@pytest.mark.parametrize("case", range(4))
def test_center_crop_equals_golden(case: int) -> None:
    with np.load(DATA, allow_pickle=False) as golden:
        small = Image.fromarray(golden[f"in{case}_small"])
        height, width, size = (int(value) for value in golden[f"in{case}_hw_size"])
        expected, total = golden[f"out{case}"], int(golden[f"out{case}_sum"])
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    found = np.asarray(center_crop(image, size))
    assert found.shape == (size, size, 3)
    np.testing.assert_array_equal(found[::8, ::8], expected)
    assert int(found.astype(np.int64).sum()) == total
