"""Between steps: bad steps are never saved, saves come when due, all processes stop together."""

import argparse
import errno
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dataset.batches import BadData
from hub.weights import read_checkpoint
from training.checkpoint import LAST, CheckpointSaver, TrainingState
from training.scalars import ScalarLog
from training.watch import RunWatch, SavePolicy
from util import distributed
from util.errors import UserError
from util.signals import StopSignals

ONE = torch.ones(())


class Run:
    """Counts steps as a training loop does."""

    def __init__(self, folder: Path, policy: SavePolicy) -> None:
        model = nn.Linear(2, 2)
        self.folder = folder
        self.state = TrainingState(
            model, torch.optim.SGD(model.parameters(), lr=0.1), argparse.Namespace()
        )
        self.signals = StopSignals()
        self.saver = CheckpointSaver(folder)
        self.scalars, self.bad_data = ScalarLog(None), BadData()
        self.watch = RunWatch(
            self.state,
            self.saver,
            self.signals,
            self.scalars,
            self.bad_data,
            policy,
            lambda epoch, step: 100 * epoch + 10 * step + np.arange(3),
        )

    def step(self, loss: torch.Tensor = ONE, norm: torch.Tensor = ONE) -> None:
        self.state.add_step(loss)
        self.watch.after_step(self.state.step - 1, loss, norm)
        if self.watch.save_due:
            self.watch.save([LAST])

    def saved(self) -> int | None:
        """The step that the last checkpoint was saved after."""
        self.saver.wait()
        path = self.folder / LAST
        return read_checkpoint(path, "test")["step_in_epoch"] if path.exists() else None


def test_saves_every_so_many_steps(tmp_path: Path) -> None:
    run = Run(tmp_path, SavePolicy(steps=3))
    saved = []
    for _ in range(7):
        run.step()
        saved.append(run.saved())
    assert saved == [None, None, 3, 3, 3, 6, 6]


def test_a_step_without_its_data_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)

    def read() -> int:
        raise OSError(errno.EIO, "Input/output error", "tokens.npy")

    run = Run(tmp_path, SavePolicy(steps=1))
    run.step()
    assert run.bad_data.read(lambda: 5, lambda: 0) == 5
    assert run.bad_data.read(read, lambda: 0) == run.bad_data.read(lambda: 5, lambda: 0) == 0
    with pytest.raises(UserError, match=r"^tokens\.npy: Input/output error$"):
        run.step()
    assert run.saved() == 1


def test_a_process_on_its_own_stops_at_bad_data() -> None:
    def read() -> None:
        raise UserError("the cache has gone")

    with pytest.raises(UserError, match="has gone"):
        BadData().read(read, lambda: None)


def test_what_was_logged_is_on_the_disk_before_a_checkpoint_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, order = Run(tmp_path, SavePolicy(steps=1)), []
    monkeypatch.setattr(run.scalars, "flush", lambda: order.append("scalars"))
    save = run.saver.save
    monkeypatch.setattr(run.saver, "save", lambda *args: [order.append("state"), save(*args)])
    run.step()
    assert order == ["scalars", "state"]


def test_saves_every_so_many_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    run = Run(tmp_path, SavePolicy(minutes=0.5))
    saved = []
    for _ in range(6):
        now += 11
        run.step()
        saved.append(run.saved())
    assert saved == [None, None, 3, 3, 3, 6]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_stops(tmp_path: Path, number: int) -> None:
    run = Run(tmp_path, SavePolicy())
    with run.signals:
        run.step()
        os.kill(os.getpid(), number)
        assert run.watch.stop_signal == 0
        run.step()
    assert run.watch.stop_signal == number
    assert run.saved() == 2


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.inf), (1.0, math.nan)]
)
@pytest.mark.parametrize("late", [False, True])
def test_a_step_that_went_wrong_is_reported_and_never_saved(
    tmp_path: Path, loss: float, norm: float, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, SavePolicy(steps=2))
    if late:  # as on a GPU, where the outcome is read when a later step is queued
        monkeypatch.setattr(run.watch, "_settle", settle_late(run.watch))
    for _ in range(3):
        run.step()
    bad = rf"the loss is {loss:g} and the gradient norm {norm:g} in epoch 0, step 3 \(images 30, 31"
    with pytest.raises(UserError, match=bad):
        run.step(torch.tensor(loss), torch.tensor(norm))
    assert run.saved() == 2


def settle_late(watch: RunWatch):
    settle = watch._settle
    return lambda late=None: settle(1 if late is not None else 0)


def test_a_failed_write_stops_the_run_soon(tmp_path: Path) -> None:
    run = Run(tmp_path / "missing", SavePolicy(steps=2))
    with pytest.raises(UserError, match="^--output_dir: .*No such file"):
        for _ in range(2):
            run.step()
        run.saver._thread.submit(int).result()  # the write is behind us
        run.step()


def test_what_a_checkpoint_says_of_an_epoch(tmp_path: Path) -> None:
    run = Run(tmp_path, SavePolicy())
    for loss in (0.1, 0.2, 0.4):
        run.step(torch.tensor(loss))
    run.watch.save([LAST])
    run.saver.wait()
    content = read_checkpoint(tmp_path / LAST, "test")
    assert (content["epoch"], content["step_in_epoch"], content["global_batch"]) == (-1, 3, 1)
    assert content["epoch_loss"] == [run.state.loss_sum.item()]
    run.state.finish_epoch()
    assert (run.state.epoch, run.state.step, run.state.loss_sum.item()) == (0, 0, 0)
