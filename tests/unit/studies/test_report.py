"""A study's table, JSON entries and picture, whose numbers are read off the drawn lines."""

import ast

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.likelihood import Estimate, Measured, Setting
from studies.report import draw, entries, table

IMAGES = 5
SIZES = {4: (1, 3, 5, 7), 3: (2, 6, 8), 16: (1,) * 16}
ORDERS = ("lpd", "random", "raster")


def measured(order: str, steps: int, sizes: tuple[int, ...] = (), name: str = "") -> Measured:
    """Images that differ by hundreds of nats, orders by a few."""
    sizes = sizes or SIZES[steps]
    draws = np.random.default_rng([len(order), steps])
    images = np.random.default_rng(0).uniform(100, 900, size=(IMAGES, 1))
    alone = images / steps + draws.uniform(size=(IMAGES, steps))
    price = draws.uniform(-1, 3, size=(IMAGES, steps)) * (max(sizes) > 1)
    return Measured(Setting(order, None, sizes, name), alone + price, price)


# As a study has them: fewer steps later, orders of one number of steps together.
RESULTS = [measured(order, steps) for steps in (16, 4, 3) for order in ORDERS]


def test_the_table_and_the_file_pair_images() -> None:
    # 16 tokens in 2 steps; images differ much, orders little.
    raster, other = (Setting(order, None, (1, 15)) for order in ("raster", "random"))
    nats = np.array([[1.0, 10.0], [1.0, 30.0], [1.0, 50.0]])
    step = np.array([[0.0, 1.0], [0.0, 1.5], [0.0, 2.0]])
    results = [Measured(raster, nats, 2 * step), Measured(other, nats + step, step)]
    head, _, *rows = table(results)
    assert head == "| steps | order | nats an image | nats a token | price | minus raster |"
    assert rows == [
        "| 2 | raster | 31.00 ± 11.55 | 1.9375 ± 0.7217 | 3.00 ± 0.58 |  |",
        "| 2 | random | 32.50 ± 11.84 | 2.0312 ± 0.7397 | 1.50 ± 0.29 | 1.50 ± 0.29 |",
    ]
    first, second = entries(results)
    assert "minus_first_order" not in first and "price_minus_first_order" not in first
    figures = {"nll": (32.5, 11.835681), "nll_per_token": (32.5 / 16, 11.835681 / 16)}
    figures |= {"price": (1.5, 0.288675), "minus_first_order": (1.5, 0.288675)}
    figures |= {"price_minus_first_order": (-1.5, 0.288675)}
    for name, (mean, error) in figures.items():
        assert second[name] == pytest.approx(mean, abs=1e-6)
        assert second[f"{name}_se"] == pytest.approx(error, abs=1e-6)
    lists = {"nll_by_step": [1.0, 31.5], "nll_by_step_se": [0.0, 11.8357]}
    lists |= {"price_by_step": [0.0, 1.5], "price_by_step_se": [0.0, 0.2887]}
    lists |= {"nll_by_image": [12.0, 32.5, 53.0], "price_by_image": [1.0, 1.5, 2.0]}
    lists["group_sizes"] = [1, 15]
    assert {name: ast.literal_eval(second[name]) for name in lists} == lists


def drawn(figure: Figure) -> dict[str, Axes]:
    """Panels by their titles."""
    return {axes.get_title(): axes for axes in figure.axes if axes.axison}


def bars(axes: Axes) -> dict[str, np.ndarray]:
    """Steps, means, and lower and upper ends of the error bars of each line, (4, points)."""
    points = {}
    for container in axes.containers:
        line, _, [bars] = container.lines
        ends = np.array([segment[:, 1] for segment in bars.get_segments()]).T
        points[container.get_label()] = np.array([*line.get_data(), *ends], dtype=float)
    return points


def test_the_picture_draws_the_figures() -> None:
    panels = drawn(draw(RESULTS))
    first, own = measured("lpd", 4), measured("random", 4)
    paired = "NLL minus lpd's, paired"
    assert list(panels) == ["NLL", paired, "price of parallelism", "4 steps", "3 steps"]
    for title, orders, values in (
        ("NLL", ORDERS, own.nll),
        (paired, ORDERS[1:], own.nll - first.nll),
        ("price of parallelism", ORDERS, own.price),
    ):
        axes, cost = panels[title], Estimate.of(values)
        assert axes.get_xlabel() == "decoding steps" and tuple(bars(axes)) == orders
        expected = (4, cost.mean, cost.mean - cost.se, cost.mean + cost.se)
        np.testing.assert_allclose(bars(axes)["random"][:, 1], expected, atol=1e-9)
    # Along a generation prices add up.
    [line] = [line for line in panels["4 steps"].lines if line.get_label() == "random"]
    so_far = Estimate.of(own.price_by_step.cumsum(axis=1))
    np.testing.assert_allclose(line.get_data(), (np.cumsum(SIZES[4]) / 16, so_far.mean))
    band = panels["4 steps"].collections[1].get_datalim(panels["4 steps"].transData)
    ends = so_far.mean - so_far.se, so_far.mean + so_far.se
    np.testing.assert_allclose((band.y0, band.y1), (ends[0].min(), ends[1].max()))
    # One by one there is nothing to pay, and an only order differs from none.
    assert list(drawn(draw([measured("lpd", 16)]))) == ["NLL", "price of parallelism"]


def test_two_lists_of_as_many_steps_are_two_lines() -> None:
    lists = (((1, 3, 5, 7), ""), ((4, 4, 4, 4), "as listed"))
    panels = drawn(draw([measured(order, 4, *one) for one in lists for order in ORDERS[:2]]))
    names = ("lpd", "random", "lpd as listed", "random as listed")
    assert tuple(bars(panels["NLL"])) == names
    # Each list's orders against the first order of that list.
    assert tuple(bars(panels["NLL minus lpd's, paired"])) == names[1::2]
    along = {line.get_label(): line for line in panels["4 steps"].lines}
    assert np.allclose(along["random as listed"].get_xdata(), [0.25, 0.5, 0.75, 1])
    assert len({along[name].get_color() for name in names}) == 4
