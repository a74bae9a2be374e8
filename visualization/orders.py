"""Pictures of generation orders: which position comes when, and what that trades."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from hub import published
from orders.order_file import read_orders, steps_in_name, warn_of_steps
from orders.sources import ORDERS, parse_order, read_group_sizes, stored
from orders.statistics import group_distances
from util.errors import UserError, blame
from util.geometry import TokenGrid, grid_side
from util.logs import progress
from visualization.drawing import COLORS, INK, Sheet, get_font, write_picture
from visualization.generation import step_titles, strip_steps

# Of which distances are means, unless fewer are on file.
NUM_ORDERS = 256
# What a position can be at a step, by the sign of its own step less that.
STATES = {
    0: ("this step", (213, 94, 0)),
    -1: ("decoded", (86, 160, 211)),
    1: ("undecided", (226, 226, 226)),
}


@dataclass(frozen=True, eq=False)
class ShownOrders:
    """Orders of one kind."""

    name: str
    order: np.ndarray  # (N,), which is shown
    orders: np.ndarray  # (M, N), which distances are averaged over


def read_shown(args: argparse.Namespace) -> tuple[list[ShownOrders], list[int]]:
    """Read or make what `--orders` names, by the flags of a grid and its steps; group sizes too."""
    published.resolve_flags(args)
    path, image_size, count = args.lpd_order_file, args.img_size, NUM_ORDERS
    if path:
        if "lpd" not in args.orders:
            raise UserError("--lpd_order_file: found no lpd in --orders, expected it there")
        with blame("--lpd_order_file"):
            on_file = read_orders(path, image_size and (image_size // args.vqgan_stride) ** 2)
            image_size = grid_side(on_file.shape[1]) * args.vqgan_stride
        count = min(count, len(on_file))
        if args.generation_steps is None and args.group_sizes is None:
            args.generation_steps = steps_in_name(path)
    with blame("--img_size, --vqgan_stride"):
        grid = TokenGrid(image_size or 256, args.vqgan_stride, vocab_size=1)
    sizes, count = read_group_sizes(args, grid.num_tokens), args.num_orders or count
    needed, shown = max(count, args.image_id + 1), []
    for text in args.orders:
        from_file = bool(path) and text == "lpd"
        flag, name = ("--lpd_order_file", path) if from_file else ("--orders", text)
        with blame(flag):
            if from_file:
                orders = stored(on_file, path, needed, f"one for each of {needed} images")
            else:
                named = published.resolve(text, published.ORDERS)
                orders = parse_order(named, grid, args.seed, needed)
        warn_of_steps(name, [len(sizes)], flag)
        order = orders(np.array([args.image_id]), sizes)[0]
        title = ORDERS.get(text, Path(text).name)
        shown.append(ShownOrders(title, order, orders(np.arange(count), sizes)))
    return shown, sizes


def draw_orders(shown: Sequence[ShownOrders], group_sizes: Sequence[int], folder: Path) -> None:
    """Write maps of the steps, the groups as an animation, and the distances an order trades."""
    write_picture(plot_step_maps(shown, group_sizes), folder / "order_steps.png")
    frames = group_frames(shown, group_sizes)
    frames = list(progress(frames, total=len(group_sizes), desc="frames", unit="step"))
    write_picture(frames, folder / "order_groups.gif")
    write_picture(plot_distances(shown, group_sizes), folder / "order_distances.png")


def step_map(order: np.ndarray, group_sizes: Sequence[int]) -> np.ndarray:
    """Return the step, from 1, in which each position of an order (N,) is decoded: (G, G)."""
    side = grid_side(len(order))
    steps = np.empty(len(order), dtype=np.int64)
    steps[order] = np.repeat(np.arange(len(group_sizes)), group_sizes) + 1
    return steps.reshape(side, side)


def group_frames(shown: Sequence[ShownOrders], group_sizes: Sequence[int]) -> Iterator[Image.Image]:
    """Draw a picture a step: the order of each kind, this step's positions highlighted."""
    maps = np.stack([step_map(kind.order, group_sizes) for kind in shown])
    cell = max(6, 192 // maps.shape[-1])
    sheet = Sheet(
        columns=len(shown),
        column_names=[kind.name for kind in shown],
        titles=step_titles(group_sizes, "positions"),
        side=maps.shape[-1] * cell,
    )
    colors = np.array([STATES[sign][1] for sign in (0, 1, -1)], dtype=np.uint8)  # -1: the last
    for number in range(len(group_sizes)):
        grids = colors[np.sign(maps - (number + 1))].repeat(cell, axis=1).repeat(cell, axis=2)
        grids[:, ::cell] = grids[:, :, ::cell] = 255  # lines between the positions
        picture = sheet.draw(grids, number)
        left, top = 6, picture.height + 2
        picture = picture.crop((0, 0, picture.width, picture.height + 26))
        draw = ImageDraw.Draw(picture)
        draw.rectangle((0, top - 2, *picture.size), "white")
        for name, color in STATES.values():
            draw.rectangle((left, top, left + 14, top + 14), color)
            draw.text((left + 20, top - 1), name, INK, get_font())
            left += 36 + int(get_font().getlength(name))
        yield picture


def plot_step_maps(shown: Sequence[ShownOrders], group_sizes: Sequence[int]) -> Figure:
    """Show the step of each position as colour and number, the kinds side by side."""
    steps, side = len(group_sizes), grid_side(sum(group_sizes))
    figure = Figure(figsize=(3.1 * len(shown) + 0.9, 3.5), layout="compressed")
    panels, size = figure.subplots(1, len(shown), squeeze=False)[0], min(8.5, 80 / side)
    for axes, kind in zip(panels, shown, strict=True):
        found = step_map(kind.order, group_sizes)
        picture = axes.imshow(found, cmap="viridis", vmin=1, vmax=steps)
        axes.set_title(kind.name)
        # Lines between the positions, and no ticks: a row or column has no meaning of its own.
        between = np.arange(side + 1) - 0.5
        axes.set(xticks=between, xticklabels=[], yticks=between, yticklabels=[])
        axes.grid(color="white", linewidth=0.6)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        # On a larger map numbers have no room.
        for (row, column), step in np.ndenumerate(found if side <= 16 else found[:0]):
            style = {"color": "white" if step <= 0.65 * steps else "black", "size": size}
            axes.text(column, row, step, ha="center", va="center", **style)
    bar = figure.colorbar(picture, ax=panels, pad=0.02, label="decoding step")
    bar.set_ticks(np.array(strip_steps(steps, 6)) + 1)
    bar.outline.set_visible(False)
    return figure


def plot_distances(shown: Sequence[ShownOrders], group_sizes: Sequence[int]) -> Figure:
    """Plot each step's distances to the context and within the group, by kind of order.

    A line is the mean over the orders; eight of ten orders lie in the band around it.
    """
    figure = Figure(figsize=(9.2, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    steps = np.arange(1, len(group_sizes) + 1)
    for number, kind in enumerate(progress(shown, desc="distances", unit="order")):
        color, marker = COLORS[number % len(COLORS)], "osD^v<>P"[number % 8]
        for axes, distances in zip(panels, group_distances(kind.orders, group_sizes), strict=True):
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
        axes.set(xlim=(0.5, len(steps) + 0.5), xticks=steps[strip_steps(len(steps), 6)])
        axes.set_title(title, fontsize="medium")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    panels[0].legend()
    figure.suptitle(
        f"{sum(group_sizes)} positions in {len(steps)} steps, mean over {len(shown[0].orders)} "
        "orders, band: 10 % to 90 % of them",
        fontsize="medium",
    )
    return figure
