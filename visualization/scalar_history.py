"""The scalars of a training run, read back from its TensorBoard files."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

EPOCH_LOSS = "epoch/loss"


class Curve(NamedTuple):
    """Values (n,) float64, NaN where they were not finite, over rising steps (n,) int64."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class History:
    """What a run logged, as the run that counts went: what it did twice is there once."""

    curves: dict[str, Curve]  # by tag: train/loss, train/lr, epoch/loss, eval/...
    resumed: list[int]  # steps at which the run was resumed
    final: dict[str, float]  # scores of the last evaluation outside of training (--evaluate)

    @property
    def steps_per_epoch(self) -> float | None:
        """Steps of one epoch; None if no epoch was finished."""
        # the loss of epoch e stands at step (e + 1) * steps_per_epoch - 1
        losses = self.curves.get(EPOCH_LOSS)
        return None if losses is None else float(np.diff(losses.steps, prepend=-1).min())


def read_history(folder: str | Path) -> History:
    """Read all TensorBoard files of a folder in the order in which they were begun.

    What a run did beyond the place where the next file goes on is dropped. A `ValueError` if there
    are no such files, or no scalars in them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder, expected that of a training run")
    files = [path for path in sorted(folder.glob("events.out.tfevents.*")) if path.is_file()]
    points, resumed, final = [], [], {}
    for path in files:
        try:
            events = list(LegacyEventFileLoader(str(path)).Load())  # up to where it is cut off
        except DecodeError as error:
            raise ValueError(f"{path} is damaged, expected a TensorBoard file") from error
        scalars = [
            (event.step, value.tag, value.simple_value)
            for event in events
            for value in event.summary.value
            if value.HasField("simple_value")
        ]
        if scalars and all(step == 0 and tag.startswith("eval/") for step, tag, _ in scalars):
            # An evaluation has no place in the run: it writes at step 0, into a file of its own.
            final = {tag: value for _, tag, value in scalars}
            continue
        # A resumed run says where it goes on; one without that word begins at its first step.
        log = [(event.session_log, event.step) for event in events]
        starts = [step for entry, step in log if entry.status == entry.START]
        for start in starts or [step for step, _, _ in scalars[:1]]:
            points = [point for point in points if point[0] < start]
            resumed = [step for step in resumed if step < start] + [start] * bool(starts)
        points += scalars
    curves: dict[str, dict[int, float]] = {}
    for step, tag, value in points:
        curves.setdefault(tag, {})[step] = value if math.isfinite(value) else math.nan
    if not curves and not final:
        found = f"{len(files)} TensorBoard files without scalars" if files else "no such files"
        raise ValueError(f"{folder}: found {found}, expected TensorBoard files of a training run")
    arrays = {
        tag: Curve(np.array(list(curve), dtype=np.int64), np.array(list(curve.values())))
        for tag, curve in curves.items()
    }
    return History(arrays, [step for step in resumed if step], final)
