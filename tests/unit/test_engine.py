"""What training steps really do, and what happens between them, seen from outside the model."""

import argparse
import errno
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

import engine_lpd
from dataset.batches import BadData, epoch_samples
from engine_lpd import draw_group_sizes, train
from hub.weights import read_checkpoint
from training.checkpoint import LAST, CheckpointSaver, TrainingState
from training.recipe import LRSchedule, Training
from training.scalars import ScalarLog
from util import distributed
from util.errors import UserError
from util.signals import MARKER, StopSignals

CPU = torch.device("cpu")
SIZES = [[4], [2, 2], [1, 3]]
STEPS, SCHEDULE = 5, LRSchedule("cosine", 0.5, 0.1, 4, 1, 0)
FLAGS = dict(batch_size=2, accum_iter=1, grad_clip=0.0, bf16=False, fsdp=False, seed=3)
FLAGS |= dict(flip_prob=0.0, label_drop_prob=0.5, train_order="random", log_every=1)
FLAGS |= dict(online_eval=False, eval_freq=1, save_steps=0, save_minutes=0.0)
FLAGS |= dict(epochs=1, save_last_freq=100, save_intermediate_freq=100)


@dataclass(frozen=True)
class Source:
    """Ten images of four tokens."""

    num_samples: int = 10
    num_tokens: int = 4
    bad_data: BadData = field(default_factory=BadData)

    def read(self, batches: np.ndarray, flipped: np.ndarray) -> Iterator[tuple]:
        for indices in batches:
            yield torch.zeros(len(indices), 4, dtype=torch.int64), torch.from_numpy(indices)


class Probe(nn.Module):
    """Stands in for LPD, notes what it is called and updated with, acts at one step or all."""

    def __init__(self, slope: float = 1.0, at: int = 0, action: Callable | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.slope, self.at, self.action = slope, at, action
        self.sizes, self.seeds, self.dtypes = [], [], set()
        self.rates, self.norms = [], []

    def forward(self, tokens, labels, group_sizes, orders, label_drop) -> torch.Tensor:
        self.sizes.append(group_sizes)
        self.seeds.append(torch.initial_seed())
        self.dtypes.add((self.weight @ torch.ones(3, 1)).dtype)
        assert orders.shape == tokens.shape and label_drop.dtype == torch.bool
        if self.action is not None and self.at in (0, len(self.sizes)):
            self.action()
        return self.slope * self.weight.sum()

    def note_update(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.norms.append(float(self.weight.grad.norm()))


class Recorded(ScalarLog):
    """Keeps what would go to TensorBoard."""

    def __init__(self) -> None:
        super().__init__(None)
        self.rows, self.flushed = [], []  # the latter: number of rows at each flush

    def add(self, step: int, values: dict) -> None:
        self.rows.append((step, dict(values)))

    def flush(self) -> None:
        self.flushed.append(len(self.rows))

    def of(self, name: str) -> list[tuple[int, float]]:
        return [(step, row[name]) for step, row in self.rows if name in row]


def run_of(folder: Path, model: Probe, **flags: object) -> Training:
    args = argparse.Namespace(**{**FLAGS, "output_dir": str(folder), **flags})
    optimizer = torch.optim.SGD(model.parameters(), lr=99.0)
    optimizer.register_step_pre_hook(model.note_update)
    state = TrainingState(model, optimizer, args, global_batch=args.batch_size)
    return Training(state, Source(), SCHEDULE, SIZES)


def run(folder: Path, model: Probe, **flags: object) -> Recorded:
    scalars = Recorded()
    train(run_of(folder, model, **flags), None, CPU, scalars, StopSignals())
    return scalars


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """(epoch, steps of the next one, names) of every checkpoint that is saved."""
    kept, save = [], CheckpointSaver.save

    def note(saver: CheckpointSaver, content: dict, names: tuple) -> None:
        kept.append((content["epoch"], content["step_in_epoch"], *names))
        save(saver, content, names)

    monkeypatch.setattr(CheckpointSaver, "save", note)
    return kept


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process takes itself for the second of two."""
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(engine_lpd, "distribute", lambda state, *_: state.model)


@pytest.fixture(params=[0, 2])
def late(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes of steps are read at once, or when others are queued, as on a GPU."""
    monkeypatch.setitem(engine_lpd.STEPS_LATE, "cpu", request.param)


def test_rates_are_the_schedules_gradients_clipped_and_logged(tmp_path: Path, late: None) -> None:
    clipped, unclipped = Probe(slope=5.0), Probe(slope=5.0)
    scalars = run(tmp_path, clipped, epochs=2, grad_clip=0.25)
    rates = [SCHEDULE.at(step / STEPS) for step in range(2 * STEPS)]
    assert clipped.rates == rates and scalars.of("train/lr") == list(enumerate(rates))
    before = [5 * math.sqrt(3)] * 2 * STEPS  # clipping
    assert clipped.norms == pytest.approx([0.25] * 2 * STEPS, rel=1e-4)
    assert [norm for _, norm in scalars.of("train/grad_norm")] == pytest.approx(before)
    means = np.reshape([loss for _, loss in scalars.of("train/loss")], (2, STEPS)).mean(axis=1)
    assert scalars.of("epoch/loss") == [(4, pytest.approx(means[0])), (9, pytest.approx(means[1]))]
    seldom = run(tmp_path, unclipped, epochs=2, log_every=3)
    assert unclipped.norms == pytest.approx(before)
    assert [step for step, _ in seldom.of("train/loss")] == [0, 3, 6, 9]


def test_every_list_is_drawn_as_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Probe()
    training = run_of(tmp_path, model, epochs=2, bf16=True)
    draws = [draw_group_sizes(training, step) for step in range(3000)]
    counts = [draws.count(sizes) for sizes in SIZES]
    assert sum(counts) == 3000
    assert all(abs(count - 1000) < 4.5 * math.sqrt(1000 * 2 / 3) for count in counts)
    train(training, None, CPU, Recorded(), StopSignals())
    assert model.sizes == draws[:10]
    assert model.dtypes == {torch.bfloat16}
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert [draw_group_sizes(training, step) for step in range(50)] == draws[:50]


def test_dropout_differs_by_step_and_rank(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    first, again, other = Probe(), Probe(), Probe()
    run(tmp_path, first)
    run(tmp_path, again)
    request.getfixturevalue("one_of_two")
    run(tmp_path, other)
    assert first.seeds == again.seeds and first.dtypes == {torch.float32}
    assert len(set(first.seeds)) == STEPS and not set(first.seeds) & set(other.seeds)


def test_saves_at_steps_and_ends_of_epochs(tmp_path: Path, saves: list[tuple], late: None) -> None:
    first = (0, 0, "checkpoint-0.pth", LAST)
    run(tmp_path, Probe(), epochs=3, save_steps=3)
    assert saves == [
        *((-1, 3, LAST), first, (0, 1, LAST), (0, 4, LAST), (1, 2, LAST)),
        (2, 0, "checkpoint-2.pth", LAST),  # and step 15 with the last epoch
    ]
    saves.clear()
    run(tmp_path, Probe(), epochs=5, save_last_freq=2, save_intermediate_freq=3)
    kept = [(epoch, 0, f"checkpoint-{epoch}.pth", LAST) for epoch in (3, 4)]
    assert saves == [first, (2, 0, LAST), *kept]


def test_saves_every_so_many_minutes(
    tmp_path: Path, saves: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Probe()
    monkeypatch.setattr(time, "monotonic", lambda: 50.0 + 11 * len(model.sizes))
    run(tmp_path, model, save_minutes=0.4)
    assert [step for _, step, *_ in saves] == [3, 0]


def test_signals_stop_but_in_the_last_step(tmp_path: Path, saves: list[tuple], late: None) -> None:
    number, scalars = signal.SIGUSR1, Recorded()
    model = Probe(at=2, action=lambda: os.kill(os.getpid(), number))
    with StopSignals() as signals:
        assert train(run_of(tmp_path, model, epochs=9), None, CPU, scalars, signals) == number
    done = len(model.sizes)
    assert saves == [(-1, done, LAST)]
    marker = json.loads((tmp_path / MARKER).read_text())
    assert marker == {"signal": number.name, "epoch": 0, "step": done}
    content = read_checkpoint(tmp_path / LAST, "test")
    assert (content["epoch"], content["step_in_epoch"], content["global_batch"]) == (-1, done, 2)
    assert content["epoch_loss"] == [pytest.approx(sum(v for _, v in scalars.of("train/loss")))]
    (tmp_path / MARKER).unlink()
    model = Probe(at=STEPS, action=model.action)
    with StopSignals() as signals:
        assert train(run_of(tmp_path, model), None, CPU, Recorded(), signals) == 0
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("wrong", [(math.nan, 1.0), (1.0, math.inf)])
def test_a_step_that_went_wrong_is_reported_and_never_saved(
    tmp_path: Path, saves: list[tuple], late: None, wrong: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimize, model = engine_lpd.optimize, Probe()

    def go_wrong(*arguments: object) -> tuple:
        fine = optimize(*arguments)
        return tuple(map(torch.tensor, wrong)) if len(model.sizes) == 4 else fine

    monkeypatch.setattr(engine_lpd, "optimize", go_wrong)
    images = ", ".join(map(str, epoch_samples(10, 0, 2, seed=3)[3].ravel()))
    bad = "the loss is {:g} and the gradient norm {:g} in epoch 0, step 3 ".format(*wrong)
    with pytest.raises(UserError, match=f"{bad}.images {images}."):
        run(tmp_path, model, save_steps=2)
    assert not (tmp_path / MARKER).exists() and saves == [(-1, 2, LAST)]


def test_only_some_images_of_a_bad_step_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"epoch 0, step 0 \(images (\d, ){7}\d and 2 more\)"):
        run(tmp_path, Probe(slope=math.nan), batch_size=10, log_every=100)


def test_a_failed_write_stops_the_run_soon(tmp_path: Path) -> None:
    model = Probe(action=lambda: time.sleep(0.02))
    with pytest.raises(UserError, match="^--output_dir: .*No such file"):
        run(tmp_path / "missing", model, epochs=100, save_steps=2)
    assert len(model.sizes) < 100


def test_what_was_logged_is_on_the_disk_before_a_checkpoint_is(
    tmp_path: Path, late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, scalars = [], Recorded()
    monkeypatch.setattr(CheckpointSaver, "save", lambda *_: rows.append(scalars.flushed[-1]))
    train(run_of(tmp_path, Probe(), save_steps=2), None, CPU, scalars, StopSignals())
    assert rows == [2, 4, STEPS + 1]  # all steps of before, and the mean of the epoch


def test_a_step_without_its_data_is_not_saved(
    tmp_path: Path, saves: list[tuple], request: pytest.FixtureRequest
) -> None:
    read = Mock(side_effect=OSError(errno.EIO, "Input/output error", "tokens.npy"))
    with pytest.raises(OSError, match="Input/output"):  # one process stops at once
        BadData().read(read, lambda: None)
    request.getfixturevalue("one_of_two")
    training = run_of(tmp_path, Probe(at=2), save_steps=1)
    training.state.global_batch = 4
    bad_data = training.source.bad_data

    def meet() -> None:
        assert bad_data.read(lambda: 5, lambda: 0) == 5
        assert bad_data.read(read, lambda: 0) == bad_data.read(lambda: 5, lambda: 0) == 0

    training.state.model.action = meet
    with pytest.raises(UserError, match=r"^tokens\.npy: Input/output error$"):
        train(training, None, CPU, Recorded(), StopSignals())
    assert saves == [(-1, 1, LAST)]
