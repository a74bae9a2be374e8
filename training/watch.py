"""What happens between training steps, alike on all processes: checking, saving, stopping."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dataset.batches import BadData, send, stage
from training.checkpoint import CheckpointSaver, TrainingState
from training.scalars import ScalarLog
from util import distributed
from util.device import HostCopy
from util.errors import UserError
from util.signals import StopSignals

MAX_SAMPLES_NAMED = 8
# Steps that a GPU may be behind the host: enough for it never to run dry.
STEPS_LATE = 4


@dataclass(frozen=True)
class SavePolicy:
    """When a run saves besides at the end of epochs; 0 is never.

    Attributes:
        steps: optimiser steps between saves, counted from the beginning of the run.
        minutes: time between saves.
    """

    steps: int = 0
    minutes: float = 0.0


@dataclass(frozen=True)
class _Step:
    """A step whose status is on its way to the host."""

    epoch: int
    step: int
    loss: torch.Tensor
    norm: torch.Tensor
    status: HostCopy


class RunWatch:
    """Asked after every step whether all is well, whether to save and whether to stop.

    The processes agree on the answers by a maximum over four small numbers. On a GPU they are read
    `STEPS_LATE` steps late, so that the host never waits for steps it has just queued; before
    anything is saved those of the last step are awaited, so no weights after a step that went wrong
    are kept.

    Args:
        state: what is saved.
        saver: saves it.
        signals: ask for a stop.
        scalars: brought to the disk before a checkpoint is.
        bad_data: what the data met on this process.
        policy: when to save.
        sample_ids: (epoch, step in it) -> places in the data of the images that it sees.

    Attributes:
        save_due: whether it is time to save.
        stop_signal: the signal that all processes have agreed to save and stop for; 0 for none.
    """

    def __init__(
        self,
        state: TrainingState,
        saver: CheckpointSaver,
        signals: StopSignals,
        scalars: ScalarLog,
        bad_data: BadData,
        policy: SavePolicy,
        sample_ids: Callable[[int, int], np.ndarray],
    ) -> None:
        self._state = state
        self._saver = saver
        self._signals = signals
        self._scalars = scalars
        self._bad_data = bad_data
        self._policy = policy
        self._sample_ids = sample_ids
        self._under_way: deque[_Step] = deque()
        self._reserved = False
        self._saved_at = time.monotonic()  # not the time of day, which may be set back
        self.save_due = False
        self.stop_signal = 0

    def after_step(self, step: int, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Check the step that `state` has just counted, and what is due after it.

        Args:
            step: its number in the whole run, from 0.
            loss: this process's loss, a scalar on the training device.
            norm: the gradient's norm before clipping, likewise.

        Raises:
            UserError: on all processes, if the loss or the gradient is not finite, if any could
                not read its data, or if a checkpoint or a scalar could not be written.
        """
        state = self._state
        status = self._exchange(loss, norm)
        self._under_way.append(_Step(state.epoch + 1, state.step - 1, loss, norm, status))
        if loss.is_cuda and not self._reserved:
            self._saver.reserve(state.content())
            self._reserved = True
        self._settle(late=STEPS_LATE if loss.is_cuda else 0)
        if self._policy.steps and (step + 1) % self._policy.steps == 0:
            self.save_due = True

    def save(self, names: Sequence[str]) -> None:
        """Save the state under `names`, beside what follows.

        Raises:
            UserError: as for `after_step`.
        """
        self._settle()
        self._scalars.flush()
        self._scalars.check()
        self._saver.save(self._state.content(), names)
        self.save_due, self._saved_at = False, time.monotonic()

    def _exchange(self, loss: torch.Tensor, norm: torch.Tensor) -> HostCopy:
        """The largest of all processes' [signal, save due, a file failed, step went wrong]."""
        due = False
        if self._policy.minutes and distributed.is_main():
            due = time.monotonic() - self._saved_at >= 60 * self._policy.minutes
        failed = self._saver.failed or self._scalars.failed or self._bad_data.found
        here = np.array([self._signals.received, due, failed, 0], dtype=np.int32)
        status = send(*stage(loss.device, here), loss.device)
        status[3] = ~(loss.isfinite() & norm.isfinite())
        return HostCopy(distributed.maximum(status))

    def _settle(self, late: int = 0) -> None:
        """Act on the status of all steps but the `late` last ones."""
        while len(self._under_way) > late:
            done = self._under_way.popleft()
            (status,) = done.status.wait()
            signal, due, failed, bad = status.tolist()
            if bad:
                self._report(done)
            if failed:
                self._saver.wait()
                self._scalars.check()
                self._bad_data.check()
            self.stop_signal = self.stop_signal or signal
            self.save_due |= bool(due or signal)

    def _report(self, bad: _Step) -> None:
        loss = distributed.mean(bad.loss)
        samples = self._sample_ids(bad.epoch, bad.step)
        named = ", ".join(map(str, samples[:MAX_SAMPLES_NAMED]))
        more = f" and {len(samples) - MAX_SAMPLES_NAMED} more"
        raise UserError(
            f"training: the loss is {loss:g} and the gradient norm {bad.norm.item():g} in epoch "
            f"{bad.epoch}, step {bad.step} (images {named}"
            f"{more if len(samples) > MAX_SAMPLES_NAMED else ''}), expected finite numbers (a "
            "smaller --blr may help); the checkpoints are of earlier steps"
        )
