"""The numbers in the picture of a study, read off the drawn lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from studies.likelihood import Estimate, Measured, Setting
from studies.plot import draw, plot

IMAGES = 5
SIZES = {4: (1, 3, 5, 7), 3: (2, 6, 8), 16: (1,) * 16}
ORDERS = ("lpd", "random", "raster")


def measured(order: str, steps: int, *, sizes: tuple[int, ...] = (), name: str = "") -> Measured:
    """Images that differ by hundreds of nats, orders by a few."""
    sizes = sizes or SIZES[steps]
    draws = np.random.default_rng([len(order), steps])
    images = np.random.default_rng(0).uniform(100, 900, size=(IMAGES, 1))
    alone = images / steps + draws.uniform(size=(IMAGES, steps))
    price = draws.uniform(-1, 3, size=(IMAGES, steps)) * (max(sizes) > 1)
    setting = Setting(order, lambda ids, _: np.tile(np.arange(16), (len(ids), 1)), sizes, name)
    return Measured(setting, alone + price, alone)


# As a study has them: fewer steps later, orders of one number of steps together.
RESULTS = [measured(order, steps) for steps in (16, 4, 3) for order in ORDERS]


def panel(figure: Figure, title: str) -> Axes:
    [found] = [axes for axes in figure.axes if axes.get_title() == title]
    return found


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.axison]


def bars(axes: Axes) -> dict[str, np.ndarray]:
    """Steps, means, and lower and upper ends of the error bars of each line, (4, points)."""
    found = {}
    for each in axes.containers:
        assert isinstance(each, ErrorbarContainer)
        line, _, [bars] = each.lines
        ends = np.array([segment[:, 1] for segment in bars.get_segments()]).T
        found[each.get_label()] = np.array([*line.get_data(), *ends], dtype=float)
    return found


def expected(order: str, values) -> np.ndarray:
    """The same, by steps, of `values` of a result and of the first order's beside it."""
    points = []
    for steps in sorted(SIZES):
        beside, own = measured(ORDERS[0], steps), measured(order, steps)
        estimate = Estimate.of(values(own, beside))
        low, high = estimate.mean - estimate.se, estimate.mean + estimate.se
        points.append((steps, estimate.mean, low, high))
    return np.array(points).T


def nll(own: Measured, _: Measured) -> np.ndarray:
    return own.by_step.sum(axis=1)


def difference(own: Measured, beside: Measured) -> np.ndarray:
    return own.by_step.sum(axis=1) - beside.by_step.sum(axis=1)


def price(own: Measured, _: Measured) -> np.ndarray:
    return (own.by_step - own.one_by_one).sum(axis=1)


@pytest.mark.parametrize(
    ("title", "orders", "values"),
    [
        ("NLL", ORDERS, nll),
        ("NLL minus lpd's, paired", ORDERS[1:], difference),
        ("price of parallelism", ORDERS, price),
    ],
)
def test_against_steps_are_the_tables_columns(title: str, orders: tuple, values) -> None:
    found = bars(panel(draw(RESULTS), title))
    assert tuple(found) == orders
    for order in orders:
        np.testing.assert_allclose(found[order], expected(order, values), atol=1e-9)


def test_differences_have_paired_errors() -> None:
    figure = draw(RESULTS)
    errors = {}
    for title in ("NLL", "NLL minus lpd's, paired"):
        _, means, low, high = bars(panel(figure, title))["random"]
        errors[title] = high - means
        np.testing.assert_allclose(high - means, means - low)
    assert (errors["NLL"] > 50).all() and (errors["NLL minus lpd's, paired"] < 5).all()


@pytest.mark.parametrize("steps", [4, 3])
def test_prices_add_up_along_each_generation(steps: int) -> None:
    axes = panel(draw(RESULTS), f"{steps} steps")
    lines = {line.get_label(): line for line in axes.lines if line.get_label() in ORDERS}
    assert tuple(lines) == ORDERS
    for (order, line), band in zip(lines.items(), axes.collections, strict=True):
        own = measured(order, steps)
        by_step = own.by_step - own.one_by_one
        so_far = np.array([by_step[:, : k + 1].sum(axis=1) for k in range(steps)])  # (K, images)
        error = so_far.std(axis=1, ddof=1) / np.sqrt(IMAGES)
        decoded = [sum(SIZES[steps][: k + 1]) / 16 for k in range(steps)]
        np.testing.assert_allclose(line.get_xdata(), decoded)
        np.testing.assert_allclose(line.get_ydata(), so_far.mean(axis=1))
        # A band goes round: along its lower edge, back along its upper one.
        [path] = band.get_paths()
        for share, mean, se in zip(decoded, so_far.mean(axis=1), error, strict=True):
            heights = path.vertices[np.isclose(path.vertices[:, 0], share), 1]
            assert heights.min() == pytest.approx(mean - se)
            assert heights.max() == pytest.approx(mean + se)
        assert np.allclose(band.get_facecolor()[0, :3], _rgb(line.get_color()))
        last = bars(panel(draw(RESULTS), "price of parallelism"))[order]
        assert line.get_ydata()[-1] == pytest.approx(last[1, list(last[0]).index(steps)])


def _rgb(colour: str) -> np.ndarray:
    from matplotlib.colors import to_rgb

    return np.array(to_rgb(colour))


def test_every_number_of_steps_has_a_panel_and_every_order_one_colour() -> None:
    figure = draw(RESULTS)
    assert titles(figure)[3:] == ["4 steps", "3 steps"]  # one token at a time pays nothing
    colours: dict[str, set] = {order: set() for order in ORDERS}
    for axes in figure.axes:
        for line in axes.lines:
            colours.get(line.get_label(), set()).add(line.get_color())
        for each in axes.containers:
            colours[each.get_label()].add(each.lines[0].get_color())
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 3


def test_eight_numbers_of_steps_have_room() -> None:
    counts = (2, 3, 4, 5, 6, 7, 8, 9)
    results = [measured("lpd", k, sizes=(*(1,) * (k - 1), 17 - k)) for k in counts]
    assert titles(draw(results))[2:] == [f"{k} steps" for k in reversed(counts)]


def test_one_order_has_no_difference(tmp_path: Path) -> None:
    results = [result for result in RESULTS if result.setting.order == "lpd"]
    figure = draw(results)
    assert titles(figure) == ["NLL", "price of parallelism", "4 steps", "3 steps"]
    plot(results, tmp_path / "one.png")


def test_what_has_no_price_is_drawn_without(tmp_path: Path) -> None:
    results = [Measured(result.setting, result.by_step, None) for result in RESULTS]
    figure = draw(results)
    assert titles(figure) == ["NLL", "NLL minus lpd's, paired"]
    np.testing.assert_allclose(bars(panel(figure, "NLL"))["raster"], expected("raster", nll))
    plot(results, tmp_path / "none.png")


def test_one_token_at_a_time_alone_is_drawn(tmp_path: Path) -> None:
    results = [measured("lpd", 16)]
    assert titles(draw(results)) == ["NLL", "price of parallelism"]
    plot(results, tmp_path / "alone.png")


def test_two_lists_of_as_many_steps_are_two_lines(tmp_path: Path) -> None:
    lists = (((1, 3, 5, 7), ""), ((4, 4, 4, 4), "as listed"))
    results = [
        measured(order, 4, sizes=sizes, name=name) for sizes, name in lists for order in ORDERS[:2]
    ]
    figure = draw(results)
    names = ("lpd", "random", "lpd as listed", "random as listed")
    assert tuple(bars(panel(figure, "NLL"))) == names
    # Each list's orders against the first order of that list.
    assert tuple(bars(panel(figure, "NLL minus lpd's, paired"))) == names[1::2]
    along = {line.get_label(): line for line in panel(figure, "4 steps").lines}
    assert np.allclose(along["random"].get_xdata(), [1 / 16, 4 / 16, 9 / 16, 1])
    assert np.allclose(along["random as listed"].get_xdata(), [0.25, 0.5, 0.75, 1])
    assert len({along[name].get_color() for name in names}) == 4
    plot(results, tmp_path / "lists.png")


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    plot(RESULTS, tmp_path / "orders.png")
    with Image.open(tmp_path / "orders.png") as image:
        assert image.format == "PNG" and image.size == (1300, 700)
        assert len(image.convert("RGB").getcolors(2**20)) > 100
    assert [path.name for path in tmp_path.iterdir()] == ["orders.png"]
