"""Results of a study of orders: a table, a JSON file and a picture."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataset.token_cache import TokenCache
from hub.download import sha256_of
from hub.published import pinned
from studies.likelihood import Estimate, Measured, images_digest
from util.errors import blame
from util.files import replacing
from util.run_record import revision, versions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Generations side by side in the picture.
_COLUMNS = 4


def first_of_same_sizes(result: Measured, results: Sequence[Measured]) -> Measured | None:
    """The first order's result with the same group sizes, if that is another."""
    sizes = result.setting.group_sizes
    first = next(other for other in results if other.setting.group_sizes == sizes)
    return None if first is result else first


def describe(args: argparse.Namespace, cache: TokenCache, image_ids: np.ndarray) -> dict[str, Any]:
    """What makes the figures what they are; the first entries of the JSON file."""
    checkpoint = Path(args.pretrained_ckpt)
    with blame("--pretrained_ckpt"):
        content = sha256_of(checkpoint)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "code": revision(),
        "versions": versions(),
        "checkpoint": pinned(checkpoint),
        "checkpoint_sha256": content,
        "cache": str(cache.path),
        "images_sha256": images_digest(cache, image_ids),
        "num_images": len(image_ids),
        "class_by_image": str([cache.classes[label] for label in cache.labels[image_ids]]),
        "num_tokens": cache.num_tokens,
        "seed": args.seed,
        "bf16": args.bf16,
    }


def table(results: Sequence[Measured]) -> list[str]:
    """Markdown lines. Differences are paired over images, so their errors are much smaller."""
    lines = [
        "| steps | order | nats an image | nats a token | price "
        f"| minus {results[0].setting.order} |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        setting, first = result.setting, first_of_same_sizes(result, results)
        nll, num_tokens = Estimate.of(result.nll), sum(setting.group_sizes)
        cells = (
            f"{setting.steps} {setting.sizes_name}".strip(),
            setting.order,
            nll,
            f"{nll.mean / num_tokens:.4f} ± {nll.se / num_tokens:.4f}",
            Estimate.of(result.price),
            "" if first is None else Estimate.of(result.nll - first.nll),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def entries(results: Sequence[Measured]) -> list[dict[str, Any]]:
    """The same, with every step and image, for a JSON file; `_se` is a standard error.

    Lists are text, because each would take a line an entry.
    """
    made = []
    for result in results:
        setting, first = result.setting, first_of_same_sizes(result, results)
        nll, num_tokens = Estimate.of(result.nll), sum(setting.group_sizes)
        entry = {
            "order": setting.order,
            "steps": setting.steps,
            "group_sizes": str(list(setting.group_sizes)),
            "sizes_name": setting.sizes_name,
            **named("nll", nll),
            **named("nll_per_token", Estimate(nll.mean / num_tokens, nll.se / num_tokens)),
        }
        if first is not None:
            entry |= named("minus_first_order", Estimate.of(result.nll - first.nll))
        entry |= named("price", Estimate.of(result.price))
        entry |= _columns("nll_by_step", result.by_step)
        entry |= _columns("price_by_step", result.price_by_step)
        entry["price_by_image"] = _rounded(result.price, 3)
        if first is not None:
            less = (result.price_by_step - first.price_by_step).sum(axis=1)
            entry |= named("price_minus_first_order", Estimate.of(less))
        # For comparisons across files: of two models on the same images, say.
        entry["nll_by_image"] = _rounded(result.nll, 3)
        made.append(entry)
    return made


def named(name: str, estimate: Estimate) -> dict[str, float]:
    """Entries of a JSON file."""
    return {name: round(estimate.mean, 6), f"{name}_se": round(estimate.se, 6)}


def _columns(name: str, values: np.ndarray) -> dict[str, str]:
    """(n, K) as two lists of K numbers."""
    estimates = [Estimate.of(column) for column in values.T]
    return {
        name: _rounded([estimate.mean for estimate in estimates], 4),
        f"{name}_se": _rounded([estimate.se for estimate in estimates], 4),
    }


def _rounded(values: Sequence[float] | np.ndarray, digits: int) -> str:
    return str([round(float(value), digits) for value in values])


def plot(results: Sequence[Measured], path: Path) -> None:
    """Write `draw`'s figure as PNG."""
    figure = draw(results)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def draw(results: Sequence[Measured]) -> Figure:
    """Draw NLL, paired differences and price against steps; below, the price along generations.

    Bars and bands are standard errors over images. Left out are differences to an only order, and
    generations of one token at a time, which pay nothing.
    """
    from matplotlib.figure import Figure  # slow to import

    pairs = [(result, first_of_same_sizes(result, results)) for result in results]
    differences = [(result, result.nll - first.nll) for result, first in pairs if first is not None]
    panels = {"NLL": [(result, result.nll) for result in results]}
    if differences:
        panels[f"NLL minus {results[0].setting.order}'s, paired"] = differences
    panels["price of parallelism"] = [(result, result.price) for result in results]
    paying = [result for result in results if max(result.setting.group_sizes) > 1]
    rows = -(-len({result.setting.steps for result in paying}) // _COLUMNS)
    heights = [4.5, 2.5 * rows] if rows else [4.5]
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    colours = {line: f"C{place}" for place, line in enumerate(dict.fromkeys(map(_line, results)))}
    upper = parts[0].subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, points) in zip(upper, panels.items(), strict=True):
        axes.set_title(title)
        if axes is not upper[0]:
            _scale(axes)
        _against_steps(axes, points, colours)
    upper[0].set_ylabel("nats an image")
    upper[0].legend()
    if rows:
        _generations(parts[1], paying, rows, colours)
    return figure


def _line(result: Measured) -> str:
    """What one line of the plot is of: an order, and its group sizes where they are no rule's."""
    return f"{result.setting.order} {result.setting.sizes_name}".strip()


def _against_steps(
    axes: Axes, points: Sequence[tuple[Measured, np.ndarray]], colours: dict[str, str]
) -> None:
    """Means over images, (n,) values of each result, with error bars."""
    points = sorted(points, key=lambda point: point[0].setting.steps)
    for line, colour in colours.items():
        own = [(r.setting.steps, Estimate.of(values)) for r, values in points if _line(r) == line]
        if own:
            axes.errorbar(
                [steps for steps, _ in own],
                [estimate.mean for _, estimate in own],
                [estimate.se for _, estimate in own],
                **{"color": colour, "marker": "o", "markersize": 4, "capsize": 2, "label": line},
            )
    ticks = sorted({result.setting.steps for result, _ in points})
    axes.set(xlabel="decoding steps", xscale="log")
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _generations(
    part: SubFigure, results: Sequence[Measured], rows: int, colours: dict[str, str]
) -> None:
    """The price so far against the share of tokens decoded, a panel for each number of steps."""
    counts = sorted({result.setting.steps for result in results}, reverse=True)
    panels = part.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    for steps, axes in zip(counts, panels, strict=False):
        axes.set_title(f"{steps} steps", fontsize="medium")
        axes.grid(alpha=0.3)
        _scale(axes)
        for result in results:
            if result.setting.steps != steps:
                continue
            sizes, line = result.setting.group_sizes, _line(result)
            so_far = [Estimate.of(values) for values in result.price_by_step.cumsum(axis=1).T]
            mean, error = np.array([(estimate.mean, estimate.se) for estimate in so_far]).T
            decoded, colour = np.cumsum(sizes) / sum(sizes), colours[line]
            axes.plot(decoded, mean, color=colour, marker=".", markersize=3, label=line)
            axes.fill_between(decoded, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
    for axes in panels[max(0, len(counts) - _COLUMNS) : len(counts)]:
        axes.tick_params(labelbottom=True)  # also where there is an empty place below
    for axes in panels[len(counts) :]:
        axes.set_axis_off()
    part.supxlabel("share of tokens decoded", fontsize="medium")
    part.supylabel("price so far, nats an image", fontsize="medium")


def _scale(axes: Axes) -> None:
    """Linear up to a nat, logarithmic beyond: else raster orders would hide the others."""
    axes.set_yscale("symlog", linthresh=1.0, linscale=0.5)
    axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.axhline(0, color="black", linewidth=0.8)
