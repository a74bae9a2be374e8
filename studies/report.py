"""Results of a study of orders: a table, a JSON file and a picture."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dataset.token_cache import TokenCache
from hub.download import sha256_of
from hub.published import pinned
from studies.likelihood import Estimate, Measured, Setting, images_digest
from util.errors import blame
from util.run_record import revision, versions


def made_by(checkpoint: str | Path) -> dict[str, str]:
    """Say which command, code and weights make the figures; the first entries of a JSON file."""
    with blame("--pretrained_ckpt"):
        content = sha256_of(Path(checkpoint))
    return {
        "command": shlex.join(["python", *sys.argv]),
        "code": revision(),
        "versions": versions(),
        "checkpoint": pinned(checkpoint),
        "checkpoint_sha256": content,
    }


def describe(args: argparse.Namespace, cache: TokenCache, image_ids: np.ndarray) -> dict[str, Any]:
    """Say what makes the figures of a study of orders what they are."""
    return {
        **made_by(args.pretrained_ckpt),
        "cache": str(cache.path),
        "images_sha256": images_digest(cache, image_ids),
        "num_images": len(image_ids),
        "class_by_image": str([cache.classes[label] for label in cache.labels[image_ids]]),
        "num_tokens": cache.num_tokens,
        "seed": args.seed,
        "bf16": args.bf16,
    }


def markdown(rows: Sequence[dict[str, object]]) -> list[str]:
    """Make lines of a table from rows, cells by the title of their column."""
    head = list(rows[0])
    lines = [f"| {' | '.join(head)} |", f"{'|---' * len(head)}|"]
    return lines + [f"| {' | '.join(map(str, row.values()))} |" for row in rows]


def _figures(result: Measured, results: Sequence[Measured]) -> dict[str, Estimate]:
    """Means of a result, and of what it differs by from the first order's with the same sizes."""
    nll, sizes = result.nll, result.setting.group_sizes
    first = next(other for other in results if other.setting.group_sizes == sizes)
    found = {"nll": nll, "nll_per_token": nll / sum(sizes), "price": result.price}
    if first is not result:
        found["minus_first_order"] = nll - first.nll
        less = result.price_by_step - first.price_by_step
        found["price_minus_first_order"] = less.sum(axis=1)
    return {name: Estimate.of(values) for name, values in found.items()}


def table(results: Sequence[Measured]) -> list[str]:
    """Make Markdown lines; paired over images, differences have much smaller errors."""
    rows = []
    for result in results:
        setting, figures = result.setting, _figures(result, results)
        per_token = figures["nll_per_token"]
        rows.append(
            {
                "steps": f"{setting.steps} {setting.sizes_name}".strip(),
                "order": setting.order,
                "nats an image": figures["nll"],
                "nats a token": f"{per_token.mean:.4f} ± {per_token.se:.4f}",
                "price": figures["price"],
                f"minus {results[0].setting.order}": figures.get("minus_first_order", ""),
            }
        )
    return markdown(rows)


def entries(results: Sequence[Measured]) -> list[dict[str, Any]]:
    """Make the same, with every step and image, for a JSON file, in which lists are text."""
    made = []
    for result in results:
        setting = result.setting
        entry: dict[str, Any] = {
            "order": setting.order,
            "steps": setting.steps,
            "group_sizes": str(list(setting.group_sizes)),
            "sizes_name": setting.sizes_name,
        }
        for name, estimate in _figures(result, results).items():
            entry |= named(name, estimate)
        for name, values in (("nll", result.by_step), ("price", result.price_by_step)):
            steps = Estimate.of(values)
            entry[f"{name}_by_step"] = _rounded(steps.mean, 4)
            entry[f"{name}_by_step_se"] = _rounded(steps.se, 4)
            # For comparisons across files: of two models on the same images, say.
            entry[f"{name}_by_image"] = _rounded(values.sum(axis=1), 3)
        made.append(entry)
    return made


def named(name: str, estimate: Estimate) -> dict[str, float]:
    """Make entries of a JSON file."""
    return {name: round(estimate.mean, 6), f"{name}_se": round(estimate.se, 6)}


def _rounded(values: np.ndarray, digits: int) -> str:
    return str([round(value, digits) for value in values.tolist()])


def draw(results: Sequence[Measured]) -> Figure:
    """Draw NLL, paired differences and price against steps; below, the price along generations.

    Bars and bands are standard errors over images. Left out are differences to an only order, and
    generations of one token at a time, which pay nothing.
    """
    panels: dict[str, list[tuple[Setting, Estimate]]] = {}
    for title, name in (
        ("NLL", "nll"),
        (f"NLL minus {results[0].setting.order}'s, paired", "minus_first_order"),
        ("price of parallelism", "price"),
    ):
        for result in results:
            if cost := _figures(result, results).get(name):
                panels.setdefault(title, []).append((result.setting, cost))
    paying = [result for result in results if max(result.setting.group_sizes) > 1]
    counts = sorted({result.setting.steps for result in paying}, reverse=True)
    heights = [4.5] + [2.5] * -(-len(counts) // 4)  # four generations side by side
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    grid, width = figure.add_gridspec(len(heights), 12, height_ratios=heights), 12 // len(panels)
    titles = dict.fromkeys(result.setting.title for result in results)
    colours = {title: f"C{place}" for place, title in enumerate(titles)}
    for place, (title, points) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[0, place * width : (place + 1) * width], title=title)
        for order, colour in colours.items():
            own = [(s.steps, cost.mean, cost.se) for s, cost in points if s.title == order]
            if own:
                how = {"marker": "o", "markersize": 4, "capsize": 2, "label": order}
                axes.errorbar(*zip(*sorted(own), strict=True), color=colour, **how)
        steps = sorted({setting.steps for setting, _ in points})
        axes.set(xlabel="decoding steps", ylabel="nats an image", xscale="log")
        axes.set_xticks(steps, labels=map(str, steps))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        if place:
            _scale(axes)
        else:
            axes.legend()
    first = None
    for place, steps in enumerate(counts):
        row, column = divmod(place, 4)
        axes = figure.add_subplot(grid[1 + row, 3 * column : 3 * column + 3], sharey=first)
        axes.set(title=f"{steps} steps", xlabel="share of tokens decoded", ylabel="price so far")
        first = first or axes
        _scale(axes)
        axes.grid(alpha=0.3)
        for result in (result for result in paying if result.setting.steps == steps):
            title = result.setting.title
            so_far = Estimate.of(result.price_by_step.cumsum(axis=1))
            low, high = so_far.mean - so_far.se, so_far.mean + so_far.se
            decoded = np.cumsum(result.setting.group_sizes) / sum(result.setting.group_sizes)
            own = {"color": colours[title]}
            axes.plot(decoded, so_far.mean, marker=".", markersize=3, label=title, **own)
            axes.fill_between(decoded, low, high, alpha=0.2, lw=0, **own)
    return figure


def _scale(axes: Axes) -> None:
    """Linear up to a nat, logarithmic beyond: else raster orders would hide the others."""
    axes.set_yscale("symlog", linthresh=1.0, linscale=0.5)
    axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.axhline(0, color="black", linewidth=0.8)
