"""A training run at a glance: loss, learning rate and scores over its epochs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evaluation.features import KINDS
from visualization.drawing import COLORS
from visualization.scalar_history import EPOCH_LOSS, History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS, RATE = "train/loss", "train/lr"
LOSS_AXES = ("linear", "log")
# A score's tag: its key, which of mean and spread it is, and the number of samples.
_SCORE = re.compile(r"eval/(.+?)(_mean|_std)?(-\d+K?)?")
_LOWER_IS_BETTER = ("fid", "sfid", "kid")
# Letters that fit beside one another on top of a figure.
_TITLE_WIDTH = 118


def plot_training(history: History, loss_axis: str = "linear") -> Figure:
    """Plot the loss, the learning rate and every score, a panel each; `ValueError` without loss.

    Scores of `--evaluate`, which belong to no epoch, are dashed lines there and stand on top.
    """
    # slow to load
    from matplotlib.figure import Figure

    if LOSS not in history.curves:
        found = ", ".join(sorted({*history.curves, *history.final}))
        raise ValueError(f"found {found}, expected {LOSS} of a training run")
    panels: list[Callable[[Axes], None]] = [partial(_plot_loss, history, loss_axis)]
    if RATE in history.curves:
        panels.append(partial(_plot_rate, history))
    keys = dict.fromkeys(_SCORE.fullmatch(tag)[1] for tag in score_tags(history.curves))
    panels += [partial(_plot_score, history, key) for key in keys]
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(9.2, 0.4 + 3.1 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, sharex=True, squeeze=False).flatten()
    for number, axes in enumerate(grid):
        if number >= len(panels):
            axes.remove()
            continue
        panels[number](axes)
        for step in history.resumed:
            label = "resumed" if number == 0 and step == history.resumed[0] else None
            axes.axvline(_axis(history, step - 1), color="0.5", lw=0.9, ls=":", label=label)
        axes.grid(alpha=0.3)
        axes.set_xlabel("step" if history.steps_per_epoch is None else "epoch")
        axes.tick_params(labelbottom=True)
        axes.locator_params(axis="x", integer=True)
    grid[0].legend()
    if history.final:
        words = f"--evaluate: {final_scores(history)}".replace(" ± ", "\u00a0±\u00a0")
        figure.suptitle(textwrap.fill(words, _TITLE_WIDTH), fontsize="medium")
    return figure


def score_tags(scalars: dict[str, object]) -> list[str]:
    """List the tags of scores, without spreads and numbers of samples."""
    matches = {tag: _SCORE.fullmatch(tag) for tag in scalars}
    return [
        tag
        for tag, match in matches.items()
        if match and match[2] != "_std" and match[1] != "num_images"
    ]


class ScoreName(NamedTuple):
    """What a score is called, what it is measured with, and which values are good."""

    title: str
    note: str = ""
    better: str = ""


def score_name(tag: str) -> ScoreName:
    """Name a score's tag: `eval/fid-5K` is FID-5K, and lower is better."""
    key, _, samples = _SCORE.fullmatch(tag).groups(default="")
    for kind in KINDS.values():
        for name, score in kind.names.items():
            if score.key == key:
                better = "lower is better" if name in _LOWER_IS_BETTER else "higher is better"
                return ScoreName(f"{score.title}{samples}", score.note, better)
    return ScoreName(f"{key}{samples}")


def final_scores(history: History) -> str:
    """Write the scores of `--evaluate` in a line."""
    words = []
    for tag in score_tags(history.final):
        spread = history.final.get(tag.replace("_mean", "_std")) if "_mean" in tag else None
        error = "" if spread is None else f" ± {spread:.2g}"
        name = score_name(tag)
        words.append(f"{name.title}{name.note} {history.final[tag]:.4g}{error}")
    return ", ".join(words)


def _axis(history: History, steps: np.ndarray | int) -> np.ndarray | float:
    """Place the end of a step on the axis of epochs, or of steps."""
    per_epoch = history.steps_per_epoch
    return steps + 1 if per_epoch is None else (steps + 1) / per_epoch


def _plot_loss(history: History, scale: str, axes: Axes) -> None:
    curve = history.curves[LOSS]
    axes.plot(_axis(history, curve.steps), curve.values, color=COLORS[5], lw=1, label="one step")
    if EPOCH_LOSS in history.curves:
        mean = history.curves[EPOCH_LOSS]
        style = {"color": COLORS[0], "marker": ".", "label": "mean of an epoch"}
        axes.plot(_axis(history, mean.steps), mean.values, **style)
    axes.set(ylabel="loss, nats a token", yscale=scale)
    if scale == "log":
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _plot_rate(history: History, axes: Axes) -> None:
    curve = history.curves[RATE]
    axes.plot(_axis(history, curve.steps), curve.values, color=COLORS[0])
    axes.set(ylabel="learning rate")
    axes.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)


def _plot_score(history: History, key: str, axes: Axes) -> None:
    """Plot a score after each evaluated epoch, with its spread; dashed that of `--evaluate`.

    Scores of different numbers of samples share the panel.
    """

    def of_key(scalars: dict[str, object]) -> list[str]:
        return [tag for tag in score_tags(scalars) if _SCORE.fullmatch(tag)[1] == key]

    on_curves, final = of_key(history.curves), of_key(history.final)
    several = len(on_curves) + len(final) > 1
    name = score_name(f"eval/{key}" if several else on_curves[0])
    axes.set_ylabel(f"{name.title}{name.note}\n{name.better}", fontsize=9)
    for tag, color in zip(on_curves, COLORS[::2], strict=False):
        curve = history.curves[tag]
        spread = history.curves.get(tag.replace("_mean", "_std")) if "_mean" in tag else None
        there = spread is not None and np.array_equal(spread.steps, curve.steps)
        style = {"color": color, "marker": "o", "markersize": 4, "capsize": 2}
        style |= {"yerr": spread.values if there else None, "label": score_name(tag).title}
        axes.errorbar(_axis(history, curve.steps), curve.values, **style)
    for tag in final:
        label = f"--evaluate: {score_name(tag).title}"
        axes.axhline(history.final[tag], color=COLORS[1], ls="--", label=label)
    if several:
        axes.legend(loc="upper right" if name.better.startswith("lower") else "lower right")
