"""Pictures of what is published, by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from hub.published import download, resolve_flags
from orders.group_sizes import group_sizes
from orders.order_file import read_orders
from scripts import visualize
from tests.hub.client import Client
from tests.hub.server import Hub
from tests.hub.worlds import STEPS20, publish


def test_a_published_order_file_says_its_grid_and_steps(
    hub: Hub, inside: Client, tmp_path: Path
) -> None:
    publish(hub, classes=3)
    flags = ["order", "--lpd_order_file", STEPS20, "--image_id", "3", "--output_dir", str(tmp_path)]
    args = visualize.build_parser().parse_args(flags)
    resolve_flags(args)
    (lpd, random, raster), sizes = visualize.choose_orders(args)
    published = read_orders(download(STEPS20))
    assert sizes == group_sizes(256, 20)
    assert np.array_equal(lpd.order, published[3]) and np.array_equal(lpd.orders, published)
    assert random.orders.shape == published.shape  # means over as many as the file holds
    assert np.array_equal(raster.order, np.arange(256))
    visualize.main(flags)
    with Image.open(tmp_path / visualize.GROUPS_FILE) as image:
        assert image.n_frames == 20
