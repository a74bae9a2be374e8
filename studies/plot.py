"""The picture of a study: what each order costs, and where in a generation the price is paid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from studies.likelihood import Estimate, Measured
from studies.report import first_of_same_sizes
from util.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Of a result: (n,) nats of each image; None where there is nothing to draw.
Values = Callable[[Measured], "np.ndarray | None"]

_COLUMNS = 4
# Nats up to which an axis is linear; logarithmic beyond, else raster orders would hide the others.
_LINEAR = 1.0


def plot(results: Sequence[Measured], path: Path) -> None:
    """Write `draw`'s figure as PNG.

    Raises:
        OSError: the file cannot be written.
    """
    figure = draw(results)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def draw(results: Sequence[Measured]) -> Figure:
    """NLL, price and paired differences against steps; below, the price along each generation.

    Bars and bands are standard errors over images. Left out are prices that were not measured,
    differences to an only order, and generations of one token at a time, which pay nothing.
    """
    # Not at the top of the file: it takes as long to load as the rest together.
    from matplotlib.figure import Figure

    panels: dict[str, Values] = {"NLL": lambda result: result.nll}
    if any(first_of_same_sizes(result, results) for result in results):
        first = results[0].setting.order
        panels[f"NLL minus {first}'s, paired"] = lambda result: _difference(result, results)
    if any(result.one_by_one is not None for result in results):
        panels["price of parallelism"] = _price
    along = [result for result in results if _pays(result)]
    rows = -(-len({result.setting.steps for result in along}) // _COLUMNS)
    heights = [4.5, 2.5 * rows] if rows else [4.5]
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    lines = {name: f"C{place}" for place, name in enumerate(dict.fromkeys(map(line_name, results)))}
    upper = parts[0].subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, values) in zip(upper, panels.items(), strict=True):
        axes.set_title(title)
        if axes is not upper[0]:
            _tame(axes)
        _against_steps(axes, results, values, lines)
    upper[0].set_ylabel("nats an image")
    upper[0].legend()
    if rows:
        _generations(parts[1], along, rows, lines)
    return figure


def line_name(result: Measured) -> str:
    """What one line of the plot is of: an order, and its group sizes where they are no rule's."""
    return f"{result.setting.order} {result.setting.sizes_name}".strip()


def _difference(result: Measured, results: Sequence[Measured]) -> np.ndarray | None:
    other = first_of_same_sizes(result, results)
    return None if other is None else result.nll - other.nll


def _price(result: Measured) -> np.ndarray | None:
    return None if result.one_by_one is None else result.price_by_step.sum(axis=1)


def _pays(result: Measured) -> bool:
    """Whether several tokens came at once, and what that cost was measured."""
    return result.one_by_one is not None and max(result.setting.group_sizes) > 1


def _against_steps(
    axes: Axes, results: Sequence[Measured], values: Values, lines: dict[str, str]
) -> None:
    """One line for each order, with error bars; `lines` has their colours."""
    for name, colour in lines.items():
        own = sorted((r for r in results if line_name(r) == name), key=lambda r: r.setting.steps)
        found = [(r.setting.steps, values(r)) for r in own if values(r) is not None]
        if not found:
            continue
        estimates = [Estimate.of(images) for _, images in found]
        axes.errorbar(
            [steps for steps, _ in found],
            [estimate.mean for estimate in estimates],
            [estimate.se for estimate in estimates],
            color=colour,
            marker="o",
            markersize=4,
            capsize=2,
            label=name,
        )
    ticks = sorted({result.setting.steps for result in results})
    axes.set(xlabel="decoding steps", xscale="log")
    axes.set_xticks(ticks, labels=[str(steps) for steps in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _generations(
    part: SubFigure, results: Sequence[Measured], rows: int, lines: dict[str, str]
) -> None:
    """The price so far against the share of tokens decoded, a panel for each number of steps."""
    counts = sorted({result.setting.steps for result in results}, reverse=True)
    every = part.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    for steps, axes in zip(counts, every, strict=False):
        axes.set_title(f"{steps} steps", fontsize="medium")
        axes.grid(alpha=0.3)
        _tame(axes)
        for result in results:
            if result.setting.steps != steps:
                continue
            sizes = result.setting.group_sizes
            so_far = [Estimate.of(images) for images in result.price_by_step.cumsum(axis=1).T]
            mean, error = np.array([(each.mean, each.se) for each in so_far]).T
            decoded, colour = np.cumsum(sizes) / sum(sizes), lines[line_name(result)]
            axes.plot(
                decoded, mean, color=colour, marker=".", markersize=3, label=line_name(result)
            )
            axes.fill_between(decoded, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
    for axes in every[max(0, len(counts) - _COLUMNS) : len(counts)]:
        axes.tick_params(labelbottom=True)  # whether or not there is one below
    for axes in every[len(counts) :]:
        axes.set_axis_off()
    part.supxlabel("share of tokens decoded", fontsize="medium")
    part.supylabel("price so far, nats an image", fontsize="medium")


def _tame(axes: Axes) -> None:
    """Room for differences of a nat beside those of a hundred."""
    axes.set_yscale("symlog", linthresh=_LINEAR, linscale=0.5)
    axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.axhline(0, color="black", linewidth=0.8)
