"""What one training step really does, seen from outside the model."""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dataset.batches import BadData
from engine_lpd import _draw_group_sizes, train_one_epoch
from training.checkpoint import CheckpointSaver, TrainingState
from training.lr_schedule import LRSchedule
from training.recipe import TrainingRecipe
from training.scalars import ScalarLog
from training.watch import RunWatch, SavePolicy
from util import distributed
from util.errors import UserError
from util.signals import StopSignals

CPU = torch.device("cpu")
SIZES = [[4], [2, 2], [1, 3]]
RECIPE = TrainingRecipe(
    batch_size=2,
    accum_iter=1,
    schedule=LRSchedule("cosine", 0.5, 0.1, 4, 1, 0),
    group_size_lists=SIZES,
    grad_clip=0.0,
    bf16=False,
    flip_prob=0.0,
    label_drop_prob=0.5,
    seed=3,
    log_every=1,
)


@dataclass(frozen=True)
class Source:
    """Ten images of four tokens."""

    num_samples: int = 10
    num_tokens: int = 4

    def read(self, batches: np.ndarray, flipped: np.ndarray) -> Iterator[tuple]:
        for indices in batches:
            yield torch.zeros(len(indices), 4, dtype=torch.int64), torch.from_numpy(indices)


class Probe(nn.Module):
    """Stands in for LPD and notes what it is called with."""

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.slope = slope
        self.sizes: list[list[int]] = []
        self.seeds: list[int] = []
        self.dtypes: set[torch.dtype] = set()

    def forward(self, tokens, labels, group_sizes, orders, label_drop) -> torch.Tensor:
        self.sizes.append(group_sizes)
        self.seeds.append(torch.initial_seed())
        self.dtypes.add((self.weight @ torch.ones(3, 1)).dtype)
        assert orders.shape == tokens.shape and label_drop.dtype == torch.bool
        return self.slope * self.weight.sum()


class RecordingSGD(torch.optim.SGD):
    """Notes the learning rate and the size of every update."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=99.0)
        self.rates: list[float] = []
        self.norms: list[float] = []

    def step(self, closure: None = None) -> None:
        (group,) = self.param_groups
        self.rates.append(group["lr"])
        self.norms.append(float(group["params"][0].grad.norm()))
        super().step(closure)


@dataclass
class Recorded(ScalarLog):
    """Keeps what would go to TensorBoard."""

    rows: list[tuple[int, dict]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(None)

    def add(self, step: int, values: dict) -> None:
        self.rows.append((step, dict(values)))

    def flush(self) -> None:
        pass


def run(model: Probe, epoch: int = 0, **changes: object) -> tuple[RecordingSGD, Recorded]:
    optimizer, scalars = RecordingSGD(model), Recorded()
    recipe = replace(RECIPE, **changes)
    state = TrainingState(model, optimizer, argparse.Namespace(), epoch - 1)
    saver = CheckpointSaver(Path("nowhere"))
    watch = RunWatch(
        *(state, saver, StopSignals(), scalars, BadData(), SavePolicy()), lambda *_: np.arange(9)
    )
    train_one_epoch(model, state, Source(), recipe, CPU, scalars, watch)
    return optimizer, scalars


@pytest.mark.parametrize("epoch", [0, 2])
def test_the_schedule_sets_the_rate_of_every_step(epoch: int) -> None:
    optimizer, scalars = run(Probe(), epoch)
    expected = [RECIPE.schedule.at(epoch + step / 5) for step in range(5)]
    assert optimizer.rates == expected
    assert [(step, row["train/lr"]) for step, row in scalars.rows] == [
        (epoch * 5 + step, lr) for step, lr in enumerate(expected)
    ]


@pytest.mark.parametrize(("grad_clip", "expected"), [(0.0, 5 * math.sqrt(3)), (0.25, 0.25)])
def test_gradients_are_clipped_and_their_norm_logged(grad_clip: float, expected: float) -> None:
    optimizer, scalars = run(Probe(slope=5.0), grad_clip=grad_clip)
    assert optimizer.norms == pytest.approx([expected] * 5, rel=1e-4)
    logged = [float(row["train/grad_norm"]) for _, row in scalars.rows]
    assert logged == pytest.approx([5 * math.sqrt(3)] * 5)  # before clipping


@pytest.mark.parametrize("bf16", [False, True])
def test_autocast_follows_the_flag(bf16: bool) -> None:
    model = Probe()
    run(model, bf16=bf16)
    assert model.dtypes == {torch.bfloat16 if bf16 else torch.float32}


def test_every_list_is_drawn_about_equally_often_whatever_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws = [_draw_group_sizes(RECIPE, step) for step in range(3000)]
    counts = [draws.count(sizes) for sizes in SIZES]
    assert sum(counts) == 3000
    assert all(abs(count - 1000) < 4.5 * math.sqrt(1000 * 2 / 3) for count in counts)
    model = Probe()
    run(model, epoch=1)
    assert model.sizes == draws[5:10]
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert [_draw_group_sizes(RECIPE, step) for step in range(50)] == draws[:50]


def test_dropout_streams_differ_between_steps_and_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, again, other = Probe(), Probe(), Probe()
    run(first)
    run(again)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    run(other)
    assert first.seeds == again.seeds
    assert len(set(first.seeds)) == 5
    assert not set(first.seeds) & set(other.seeds)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    expected = (
        r"the loss is nan and the gradient norm nan in epoch 0, step 0 "
        r"\(images 0, 1, 2, 3, 4, 5, 6, 7 and 1 more\)"
    )
    with pytest.raises(UserError, match=expected):
        run(Probe(slope=math.nan), log_every=100)
