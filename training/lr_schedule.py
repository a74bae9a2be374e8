"""Learning rate as a function of the fractional epoch (method section 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass

LR_SCHEDULES = ("constant+cosine", "constant", "cosine")


@dataclass(frozen=True)
class LRSchedule:
    """Linear warm-up, then constant, cosine, or constant followed by cosine.

    Attributes:
        kind: one of `LR_SCHEDULES`.
        lr: learning rate after the warm-up.
        min_lr: where the cosine ends.
        epochs: length of the run.
        warmup_epochs: length of the warm-up.
        lr_decay_start_epoch: where `constant+cosine` begins to fall.
    """

    kind: str
    lr: float
    min_lr: float
    epochs: int
    warmup_epochs: int
    lr_decay_start_epoch: int

    def __post_init__(self) -> None:
        if self.kind not in LR_SCHEDULES:
            raise ValueError(f"found {self.kind!r}, expected one of {', '.join(LR_SCHEDULES)}")

    def at(self, epoch: float) -> float:
        """Learning rate at fractional epoch `epoch` in [0, epochs)."""
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        if self.kind == "constant":
            return self.lr
        start = self.warmup_epochs if self.kind == "cosine" else self.lr_decay_start_epoch
        if epoch < start:
            return self.lr
        progress = (epoch - start) / (self.epochs - start)
        return self.min_lr + (self.lr - self.min_lr) / 2 * (1 + math.cos(math.pi * progress))
