"""A training run at a glance: loss, learning rate and scores over its epochs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evaluation.features import KINDS, ScoreName
from visualization.drawing import COLORS
from visualization.scalar_history import EPOCH_LOSS, History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS, RATE = "train/loss", "train/lr"
LOSS_AXES = ("linear", "log")
# A score's tag: its key, which of mean and spread it is, and the number of samples.
_SCORE = re.compile(r"eval/(.+?)(_mean|_std)?(-\d+K?)?")
_NAMES = {score.key: (name, score) for kind in KINDS.values() for name, score in kind.names.items()}
_LOWER_IS_BETTER = ("fid", "sfid", "kid")
# Letters that fit beside one another on top of a figure.
_TITLE_WIDTH = 118


class Score(NamedTuple):
    """What a score is called, what it is measured with, which values are good, and its spread."""

    key: str
    name: str  # FID
    samples: str  # -5K, or nothing
    note: str = ""
    better: str = ""
    spread: str | None = None  # tag of the standard deviation

    @property
    def title(self) -> str:
        """FID-5K."""
        return self.name + self.samples


def read_scores(tags: Iterable[str]) -> dict[str, Score]:
    """Find the scores among a run's tags, without spreads and numbers of samples."""
    scores = {}
    for tag in tags:
        match = _SCORE.fullmatch(tag)
        if not match or match[2] == "_std" or match[1] == "num_images":
            continue
        key, mean, samples = match.groups(default="")
        name, known = _NAMES.get(key, ("", ScoreName(key, key)))
        better = "lower is better" if name in _LOWER_IS_BETTER else "higher is better"
        spread = tag.replace("_mean", "_std") if mean else None
        scores[tag] = Score(key, known.title, samples, known.note, better * bool(name), spread)
    return scores


def plot_training(history: History, loss_axis: str = "linear") -> Figure:
    """Plot the loss, the learning rate and every score, a panel each; `ValueError` without loss.

    Scores of `--evaluate`, which belong to no epoch, are dashed lines there and stand on top.
    """
    from matplotlib.figure import Figure  # slow to load

    if LOSS not in history.curves:
        found = ", ".join(sorted({*history.curves, *history.final}))
        raise ValueError(f"found {found}, expected {LOSS} of a training run")
    panels: list[Callable[[Axes], None]] = [partial(_plot_loss, history, loss_axis)]
    if RATE in history.curves:
        panels.append(partial(_plot_rate, history))
    keys = dict.fromkeys(score.key for score in read_scores(history.curves).values())
    panels += [partial(_plot_score, history, key) for key in keys]
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(9.2, 0.4 + 3.1 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, sharex=True, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, plot in zip(grid, panels, strict=False):
        plot(axes)
        for number, step in enumerate(history.resumed):
            style = {"color": "0.5", "lw": 0.9, "ls": ":", "label": None if number else "resumed"}
            axes.axvline(_axis(history, step - 1), **style)
        axes.grid(alpha=0.3)
        axes.set_xlabel("step" if history.steps_per_epoch is None else "epoch")
        axes.tick_params(labelbottom=True)
        axes.locator_params(axis="x", integer=True)
    grid[0].legend()
    if history.final:
        words = f"--evaluate: {final_scores(history)}".replace(" ± ", "\u00a0±\u00a0")
        figure.suptitle(textwrap.fill(words, _TITLE_WIDTH), fontsize="medium")
    return figure


def final_scores(history: History) -> str:
    """Write the scores of `--evaluate` in a line."""
    words = []
    for tag, score in read_scores(history.final).items():
        spread = history.final.get(score.spread)
        error = "" if spread is None else f" ± {spread:.2g}"
        words.append(f"{score.title}{score.note} {history.final[tag]:.4g}{error}")
    return ", ".join(words)


def _axis(history: History, steps: np.ndarray | int) -> np.ndarray | float:
    """Place the end of a step on the axis of epochs, or of steps."""
    return (steps + 1) / (history.steps_per_epoch or 1)


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
    axes.set_ylabel("learning rate")
    axes.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)


def _plot_score(history: History, key: str, axes: Axes) -> None:
    """Plot a score after each evaluated epoch, with its spread; dashed that of `--evaluate`.

    Scores of different numbers of samples share the panel.
    """
    scores = read_scores({**history.curves, **history.final})
    on_curves = [tag for tag in history.curves if tag in scores and scores[tag].key == key]
    final = [tag for tag in history.final if tag in scores and scores[tag].key == key]
    several, name = len(on_curves) + len(final) > 1, scores[on_curves[0]]
    title = name.name if several else name.title
    axes.set_ylabel(f"{title}{name.note}\n{name.better}", fontsize=9)
    for tag, color in zip(on_curves, COLORS[::2], strict=False):
        curve, spread = history.curves[tag], history.curves.get(scores[tag].spread)
        there = spread is not None and np.array_equal(spread.steps, curve.steps)
        style = {"color": color, "marker": "o", "markersize": 4, "capsize": 2}
        style |= {"yerr": spread.values if there else None, "label": scores[tag].title}
        axes.errorbar(_axis(history, curve.steps), curve.values, **style)
    for tag in final:
        label = f"--evaluate: {scores[tag].title}"
        axes.axhline(history.final[tag], color=COLORS[1], ls="--", label=label)
    if several:
        axes.legend(loc="upper right" if name.better.startswith("lower") else "lower right")
