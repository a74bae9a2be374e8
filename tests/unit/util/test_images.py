from pathlib import Path

import numpy as np
import torch
from PIL import Image

from util.images import save_grid, to_float, to_uint8


def test_values_are_scaled_rounded_and_clipped() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    values = to_float(pixels)
    assert values.dtype == torch.float32 and (values.min(), values.max()) == (-1, 1)
    torch.testing.assert_close(to_uint8(values), pixels.permute(0, 2, 3, 1), rtol=0, atol=0)
    levels = torch.tensor([-300.0, -0.4, 0.4, 0.6, 99.4, 99.6, 254.6, 300.0])
    images = (levels / 255 * 2 - 1).expand(1, 3, 1, 8)
    assert to_uint8(images)[0, 0, :, 2].tolist() == [0, 0, 0, 1, 99, 100, 255, 255]


def test_a_grid_places_images_with_white_gaps(tmp_path: Path) -> None:
    images = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 4, 4, 3)
    save_grid(images, tmp_path / "grid.png", columns=2)
    expected = np.full((10, 10, 3), 255, dtype=np.uint8)
    expected[:4, :4], expected[:4, 6:], expected[6:, :4] = 10, 20, 30
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), expected)
