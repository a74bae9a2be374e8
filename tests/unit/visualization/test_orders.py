from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orders.group_sizes import group_sizes
from orders.locality import random_orders
from visualization import orders
from visualization.drawing import write_picture
from visualization.orders import ShownOrders


def shown(side: int) -> list[ShownOrders]:
    rows = random_orders(4, side**2, seed=1)
    raster = np.tile(np.arange(side**2), (4, 1))
    return [ShownOrders("random", rows[2], rows), ShownOrders("raster", raster[0], raster)]


@pytest.mark.parametrize("side", [2, 8])
def test_each_frame_of_the_file_shows_its_step(tmp_path: Path, side: int) -> None:
    sizes = group_sizes(side**2, min(side**2, 6))
    kinds = shown(side)
    write_picture(list(orders.group_frames(kinds, sizes)), tmp_path / "groups.gif")
    colors = dict(orders.STATES.values())
    cell = max(6, 192 // side)
    middle = np.arange(side) * cell + cell // 2
    with Image.open(tmp_path / "groups.gif") as gif:
        assert gif.n_frames == len(sizes)
        for step in range(len(sizes)):
            gif.seek(step)
            pixels = np.asarray(gif.convert("RGB")).astype(int)
            for number, kind in enumerate(kinds):
                # Below title and names (6 + 2 * 22 pixels), 6 pixels between the grids.
                found = pixels[50 + middle[:, None], 6 + number * (side * cell + 6) + middle]
                expected = np.full((side**2, 3), colors["undecided"])
                expected[kind.order[: sum(sizes[: step + 1])]] = colors["this step"]
                expected[kind.order[: sum(sizes[:step])]] = colors["decoded"]
                # a GIF's palette may round
                assert np.abs(found.reshape(-1, 3) - expected).sum(axis=-1).max() <= 3


def test_the_map_has_the_colour_of_its_step_and_the_curves_their_means() -> None:
    sizes, kinds = group_sizes(64, 12), shown(8)
    axes = orders.plot_step_maps(kinds, sizes).axes[1]
    (picture,) = axes.get_images()
    assert axes.get_title() == "raster" and picture.get_clim() == (1, 12)
    steps = np.repeat(np.arange(12), sizes).reshape(8, 8) + 1
    assert np.array_equal(picture.get_array(), steps)
    numbers = {text.get_position(): int(text.get_text()) for text in axes.texts}
    assert numbers == {(x, y): step for (y, x), step in np.ndenumerate(steps)}
    assert not orders.plot_step_maps(shown(32), group_sizes(1024, 48)).axes[1].texts  # no room
    context, _ = orders.plot_distances(kinds, sizes).axes
    line = context.get_lines()[1]
    steps, means = line.get_data()
    assert line.get_label() == "raster" and context.get_xlabel() == "decoding step"
    assert steps.tolist() == list(range(2, 13))
    assert means[0] == 1.5  # positions 1 and 2, with 0 known
