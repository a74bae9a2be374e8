from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orders.group_sizes import group_sizes
from orders.locality import random_orders
from visualization.drawing import write_gif, write_png
from visualization.orders import (
    _STATES,
    EARLIER,
    LATER,
    NOW,
    ShownOrders,
    group_frames,
    group_states,
    plot_distances,
    plot_step_maps,
    step_map,
)


def shown(side: int) -> list[ShownOrders]:
    rows = random_orders(4, side**2, seed=1)
    raster = np.tile(np.arange(side**2), (4, 1))
    return [ShownOrders("random", rows[2], rows), ShownOrders("raster", raster[0], raster)]


def test_the_map_is_the_step_of_each_position() -> None:
    assert step_map(np.array([3, 0, 2, 1]), [1, 1, 2]).tolist() == [[2, 3], [3, 1]]


def test_states_are_what_is_decoded_so_far() -> None:
    order, sizes = random_orders(1, 64, seed=2)[0], group_sizes(64, 12)
    done: list[int] = []
    for state, size in zip(group_states(order, sizes), sizes, strict=True):
        group = order[len(done) : len(done) + size].tolist()
        expected = np.full(64, LATER)
        expected[done], expected[group] = EARLIER, NOW
        assert np.array_equal(state.ravel(), expected)
        done += group
    assert len(done) == 64


@pytest.mark.parametrize("side", [2, 8, 32])
def test_each_frame_of_the_file_shows_its_step(tmp_path: Path, side: int) -> None:
    sizes = group_sizes(side**2, min(side**2, 6))
    kinds = shown(side)
    write_gif(list(group_frames(kinds, sizes)), tmp_path / "groups.gif", seconds=0.1)
    states = [group_states(kind.order, sizes) for kind in kinds]
    colors = np.array([color for _, color in _STATES])
    cell = max(6, 192 // side)
    with Image.open(tmp_path / "groups.gif") as gif:
        assert gif.n_frames == len(sizes)
        for step in range(len(sizes)):
            gif.seek(step)
            pixels = np.asarray(gif.convert("RGB")).astype(int)
            for number, expected in enumerate(states):
                # Below title and names (6 + 2 * 22 pixels), 6 pixels between the grids.
                left = 6 + number * (side * cell + 6)
                middle = np.arange(side) * cell + cell // 2
                found = pixels[50 + middle[:, None], left + middle]
                nearest = np.abs(found[:, :, None] - colors).sum(axis=-1)
                assert nearest.min(axis=-1).max() <= 3  # a GIF's palette may round
                assert np.array_equal(nearest.argmin(axis=-1), expected[step])


@pytest.mark.parametrize(("side", "steps"), [(1, 1), (2, 4), (8, 12), (16, 20)])
def test_figures_of_any_grid_can_be_written(tmp_path: Path, side: int, steps: int) -> None:
    sizes = group_sizes(side**2, steps)
    for name, plot in (("map", plot_step_maps), ("distances", plot_distances)):
        write_png(plot(shown(side), sizes), tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.format == "PNG" and image.width > 600


def test_the_map_has_the_colour_of_its_step_and_the_curves_their_means() -> None:
    sizes, kinds = group_sizes(64, 12), shown(8)
    figure = plot_step_maps(kinds, sizes)
    for axes, kind in zip(figure.axes, kinds, strict=False):
        (picture,) = axes.get_images()
        assert picture.get_clim() == (1, 12)
        assert np.array_equal(picture.get_array(), step_map(kind.order, sizes))
        assert sorted(int(text.get_text()) for text in axes.texts) == sorted(
            step_map(kind.order, sizes).ravel()
        )
    context, _ = plot_distances(kinds, sizes).axes
    steps, means = context.get_lines()[1].get_data()
    assert context.get_lines()[1].get_label() == "raster"
    assert steps.tolist() == list(range(2, 13))
    assert means[0] == 1.5  # positions 1 and 2, with 0 known
