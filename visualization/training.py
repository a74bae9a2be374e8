"""A training run at a glance: loss, learning rate and scores over its epochs."""

import re
import textwrap
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.features import KINDS, ScoreName
from visualization.drawing import COLORS
from visualization.scalar_history import EPOCH_LOSS, History

LOSS, RATE = "train/loss", "train/lr"
# A score's tag: its key, which of mean and spread it is, and the number of samples.
_SCORE = re.compile(r"eval/(.+?)(_mean|_std)?(-\d+K?)?")
_NAMES = {score.key: (name, score) for kind in KINDS.values() for name, score in kind.names.items()}


class Score(NamedTuple):
    """What a score is called, which values are good, and the tag of its standard deviation."""

    name: ScoreName
    title: str  # FID-5K
    better: str
    spread: str | None


def read_scores(tags: Iterable[str]) -> dict[str, Score]:
    """Find the scores among a run's tags, without spreads and numbers of samples."""
    scores = {}
    for tag in tags:
        match = _SCORE.fullmatch(tag)
        if not match or match[2] == "_std" or match[1] == "num_images":
            continue
        key, mean, samples = match.groups(default="")
        name, known = _NAMES.get(key, ("", ScoreName(key, key)))
        better = "lower is better" if name in ("fid", "sfid", "kid") else "higher is better"
        spread, title = tag.replace("_mean", "_std") if mean else None, known.title + samples
        scores[tag] = Score(known, title, better * bool(name), spread)
    return scores


def plot_training(history: History) -> Figure:
    """Plot the loss, the learning rate and every score, a panel each; `ValueError` without loss.

    Scores of `--evaluate`, which belong to no epoch, are dashed lines there and stand on top.
    """
    curves = history.curves
    if not {LOSS, RATE} <= curves.keys():
        found = ", ".join(sorted({*curves, *history.final}))
        raise ValueError(f"found {found}, expected {LOSS} and {RATE} of a training run")
    keys = dict.fromkeys(score.name.key for score in read_scores(curves).values())
    rows, count = -(-(2 + len(keys)) // 2), 2 + len(keys)
    figure = Figure(figsize=(9.2, 0.4 + 3.1 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, sharex=True, squeeze=False).flatten()
    for axes in grid[count:]:
        axes.remove()
    loss, rate, *panels = grid[:count]
    loss.plot(*_points(history, LOSS), color=COLORS[5], lw=1, label="one step")
    if EPOCH_LOSS in curves:
        style = {"color": COLORS[0], "marker": ".", "label": "mean of an epoch"}
        loss.plot(*_points(history, EPOCH_LOSS), **style)
    loss.set_ylabel("loss, nats a token")
    rate.plot(*_points(history, RATE), color=COLORS[0])
    rate.set_ylabel("learning rate")
    rate.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
    for key, axes in zip(keys, panels, strict=True):
        _plot_score(history, key, axes)
    for axes in grid[:count]:
        for number, step in enumerate(history.resumed):
            style = {"color": "0.5", "lw": 0.9, "ls": ":", "label": None if number else "resumed"}
            axes.axvline(step / (history.steps_per_epoch or 1), **style)
        axes.grid(alpha=0.3)
        axes.set_xlabel("step" if history.steps_per_epoch is None else "epoch")
        axes.tick_params(labelbottom=True)
        axes.locator_params(axis="x", integer=True)
    loss.legend()
    words = []
    for tag, score in read_scores(history.final).items():
        spread = history.final.get(score.spread)
        error = "" if spread is None else f"\u00a0±\u00a0{spread:.2g}"
        words.append(f"{score.title}{score.name.note} {history.final[tag]:.4g}{error}")
    if words:
        text = f"--evaluate: {', '.join(words)}"
        figure.suptitle(textwrap.fill(text, width=118), fontsize="medium")
    return figure


def _points(history: History, tag: str) -> tuple[np.ndarray, np.ndarray]:
    """The ends of a curve's steps on the axis of epochs, or of steps; and its values."""
    steps, values = history.curves[tag]
    return (steps + 1) / (history.steps_per_epoch or 1), values


def _plot_score(history: History, key: str, axes: Axes) -> None:
    """Plot a score after each evaluated epoch, with its spread; dashed that of `--evaluate`.

    Scores of different numbers of samples share the panel.
    """
    scores = read_scores({**history.curves, **history.final})
    on_curves = [tag for tag in history.curves if tag in scores and scores[tag].name.key == key]
    final = [tag for tag in history.final if tag in scores and scores[tag].name.key == key]
    several, first = len(on_curves) + len(final) > 1, scores[on_curves[0]]
    title = first.name.title if several else first.title
    axes.set_ylabel(f"{title}{first.name.note}\n{first.better}", fontsize=9)
    for tag, color in zip(on_curves, COLORS[::2], strict=False):
        curve, spread = history.curves[tag], history.curves.get(scores[tag].spread)
        there = spread is not None and np.array_equal(spread.steps, curve.steps)
        style = {"color": color, "marker": "o", "markersize": 4, "capsize": 2}
        style |= {"yerr": spread.values if there else None, "label": scores[tag].title}
        axes.errorbar(*_points(history, tag), **style)
    for tag in final:
        label = f"--evaluate: {scores[tag].title}"
        axes.axhline(history.final[tag], color=COLORS[1], ls="--", label=label)
    if several:
        axes.legend(loc="upper right" if first.better.startswith("lower") else "lower right")
