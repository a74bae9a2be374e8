"""Pictures of generation orders: which position comes when, and what that trades."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from orders.statistics import group_distances
from util.geometry import grid_side
from util.logs import progress
from visualization.drawing import COLORS, INK, Sheet, get_font
from visualization.generation import step_titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What a position is at a step, and how it is drawn.
LATER, EARLIER, NOW = 0, 1, 2
_STATES = (("undecided", (226, 226, 226)), ("decoded", (86, 160, 211)), ("this step", (213, 94, 0)))
# From so many positions a side the map has no room for numbers.
_MAX_NUMBERED = 16
_MARKERS = "osD^v<>P"


@dataclass(frozen=True, eq=False)
class ShownOrders:
    """Orders of one kind: one (N,) that is shown, and (M, N) that distances are averaged over."""

    name: str
    order: np.ndarray
    orders: np.ndarray


def step_map(order: np.ndarray, group_sizes: Sequence[int]) -> np.ndarray:
    """Return the step, from 1, in which each position of an order (N,) is decoded: (G, G)."""
    side = grid_side(len(order))
    steps = np.empty(len(order), dtype=np.int64)
    steps[order] = np.repeat(np.arange(len(group_sizes)), group_sizes) + 1
    return steps.reshape(side, side)


def group_states(order: np.ndarray, group_sizes: Sequence[int]) -> np.ndarray:
    """Return what each position is at each step: LATER, EARLIER or NOW; (K, G, G) uint8."""
    own = step_map(order, group_sizes)
    step = np.arange(1, len(group_sizes) + 1)[:, None, None]
    return np.where(own == step, NOW, np.where(own < step, EARLIER, LATER)).astype(np.uint8)


def group_frames(shown: Sequence[ShownOrders], group_sizes: Sequence[int]) -> Iterator[Image.Image]:
    """Draw a picture a step: the order of each kind, this step's positions highlighted."""
    colors = np.array([color for _, color in _STATES], dtype=np.uint8)
    cell = max(6, 192 // grid_side(sum(group_sizes)))
    states = np.stack([group_states(kind.order, group_sizes) for kind in shown], axis=1)
    sheet = Sheet(
        columns=len(shown),
        column_names=[kind.name for kind in shown],
        titles=[title.replace("tokens", "positions") for title in step_titles(group_sizes)],
        side=states.shape[-1] * cell,
    )
    for number, now in enumerate(states):
        grids = colors[now].repeat(cell, axis=1).repeat(cell, axis=2)
        grids[:, ::cell] = grids[:, :, ::cell] = 255  # lines between the positions
        yield _with_legend(sheet.draw(grids, number))


def _with_legend(picture: Image.Image) -> Image.Image:
    """Add a line below that says what the colours mean."""
    height, font = 26, get_font(14)
    longer = Image.new("RGB", (picture.width, picture.height + height), "white")
    longer.paste(picture)
    draw, left, top = ImageDraw.Draw(longer), 6, picture.height + 2
    for name, color in reversed(_STATES):
        draw.rectangle((left, top, left + 14, top + 14), color)
        draw.text((left + 20, top - 1), name, INK, font)
        left += 36 + int(font.getlength(name))
    return longer


def plot_step_maps(shown: Sequence[ShownOrders], group_sizes: Sequence[int]) -> Figure:
    """Show the step of each position as colour, the kinds side by side."""
    # Not at the top of the file: it takes as long to load as the rest together.
    from matplotlib.figure import Figure

    steps, side = len(group_sizes), grid_side(sum(group_sizes))
    figure = Figure(figsize=(3.1 * len(shown) + 0.9, 3.5), layout="compressed")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, kind in zip(panels, shown, strict=True):
        found = step_map(kind.order, group_sizes)
        picture = axes.imshow(found, cmap="viridis", vmin=1, vmax=steps)
        axes.set_title(kind.name)
        # Lines between the positions, and no ticks: a row or column has no meaning of its own.
        axes.set_xticks(np.arange(side + 1) - 0.5, labels=[])
        axes.set_yticks(np.arange(side + 1) - 0.5, labels=[])
        axes.grid(color="white", linewidth=0.6)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if side <= _MAX_NUMBERED:
            _number(axes, found, steps)
    bar = figure.colorbar(picture, ax=panels, pad=0.02, label="decoding step")
    bar.set_ticks(_ticks(steps))
    bar.outline.set_visible(False)
    return figure


def _ticks(steps: int) -> np.ndarray:
    """Choose the first step, the last and round numbers in between, none close to another."""
    from matplotlib.ticker import MaxNLocator

    between = MaxNLocator(5, integer=True).tick_values(1, steps)
    free = (between > 1 + steps / 12) & (between < steps - steps / 12)
    return np.unique([1, *between[free], steps])


def _number(axes: Axes, found: np.ndarray, steps: int) -> None:
    """Write each position's step into its cell."""
    size = 80 / len(found) if len(found) > 10 else 8.5
    for (row, column), step in np.ndenumerate(found):
        color = "white" if step <= 0.65 * steps else "black"
        axes.text(column, row, step, ha="center", va="center", fontsize=size, color=color)


def plot_distances(shown: Sequence[ShownOrders], group_sizes: Sequence[int]) -> Figure:
    """Plot each step's distances to the context and within the group, by kind of order.

    A line is the mean over the orders; eight of ten orders lie in the band around it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    steps = np.arange(1, len(group_sizes) + 1)
    for number, kind in enumerate(progress(shown, desc="distances", unit="order")):
        found = group_distances(kind.orders, group_sizes)
        color, marker = COLORS[number % len(COLORS)], _MARKERS[number % len(_MARKERS)]
        for axes, distances in zip(panels, found, strict=True):
            there = ~np.isnan(distances[0])  # by the sizes, the same for all orders
            x, values = steps[there], distances[:, there]
            low, high = np.percentile(values, (10, 90), axis=0)
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            style = {"marker": marker, "markersize": 4, "label": kind.name, "color": color}
            axes.plot(x, values.mean(axis=0), **style)
    titles = (
        "to the nearest position decoded before\n(near: easy to predict)",
        "to the nearest position of the same step\n(far: nearly independent)",
    )
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xlabel="decoding step", ylabel="Euclidean distance, grid positions")
        axes.set_title(title, fontsize="medium")
        axes.set_xlim(0.5, len(steps) + 0.5)
        axes.set_xticks(_ticks(len(steps)))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    panels[0].legend()
    figure.suptitle(
        f"{sum(group_sizes)} positions in {len(steps)} steps, mean over {len(shown[0].orders)} "
        "orders, band: 10 % to 90 % of them",
        fontsize="medium",
    )
    return figure
