"""The scalars of a training run, read back from its TensorBoard files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

EPOCH_LOSS = "epoch/loss"


class Curve(NamedTuple):
    """Values (n,) float64 over rising steps (n,) int64."""

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
        if EPOCH_LOSS not in self.curves:
            return None
        # the loss of epoch e stands at step (e + 1) * steps_per_epoch - 1
        return float(np.diff(self.curves[EPOCH_LOSS].steps, prepend=-1).min())


def read_history(folder: str | Path) -> History:
    """Read all TensorBoard files of a folder in the order in which they were begun.

    A resumed run repeats the steps after its checkpoint: of two values of a step the later counts,
    and what an abandoned attempt did beyond the place where the next went on is dropped.

    Raises:
        ValueError: there are no such files, or no scalars in them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder, expected that of a training run")
    files = [path for path in sorted(folder.glob("events.out.tfevents.*")) if path.is_file()]
    points: dict[str, dict[int, float]] = {}
    resumed: list[int] = []
    final: dict[str, float] = {}
    for path in files:
        events = list(_events(path))
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
        for start in (event.step for event in events if _is_start(event)):
            resumed = [step for step in resumed if step < start] + [start]
            for curve in points.values():
                _drop_from(curve, start)
        for step, tag, value in scalars:
            curve = points.setdefault(tag, {})
            if curve and step <= next(reversed(curve)):  # a run that began anew, not resumed
                for other in points.values():
                    _drop_from(other, step)
            curve[step] = value
    curves = {tag: _as_curve(found) for tag, found in points.items() if found}
    if not curves and not final:
        found = f"{len(files)} TensorBoard files without scalars" if files else "no such files"
        raise ValueError(f"{folder}: found {found}, expected TensorBoard files of a training run")
    return History(curves, [step for step in resumed if step], final)


def _events(path: Path) -> Iterator[Event]:
    """Read the events of a file, up to where it is cut off or damaged."""
    # slow to load
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    try:
        yield from LegacyEventFileLoader(str(path)).Load()
    except DecodeError as error:
        raise ValueError(f"{path} is damaged, expected a TensorBoard file") from error


def _is_start(event: Event) -> bool:
    """Whether a resumed run says here that it goes on at this step."""
    return event.HasField("session_log") and event.session_log.status == event.session_log.START


def _drop_from(curve: dict[int, float], start: int) -> None:
    for step in [step for step in curve if step >= start]:
        del curve[step]


def _as_curve(found: dict[int, float]) -> Curve:
    values = np.array([value if math.isfinite(value) else np.nan for value in found.values()])
    return Curve(np.array(list(found), dtype=np.int64), values)
