"""What the processes tell one another after every training step: one sum, read late on a GPU."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from dataset.batches import send, stage
from util import distributed
from util.device import HostCopy
from util.signals import SIGNALS


@dataclass(frozen=True)
class Outcome:
    """What all processes know of a step.

    Attributes:
        step: its number in the whole run, from 0.
        lr: its learning rate.
        loss: mean over the processes, nats per token.
        norm: of the gradient before clipping.
        save: whether it is time to save.
        failed: whether a process could not read its data or write a file.
        signal: the one that a process was asked to stop with; 0 for none.
    """

    step: int
    lr: float
    loss: float
    norm: float
    save: bool
    failed: bool
    signal: int


class Agreement:
    """All-reduces of the last steps, under way to the host. Its length is their number."""

    def __init__(self) -> None:
        self._under_way: deque[tuple[int, float, HostCopy]] = deque()

    def __len__(self) -> int:
        return len(self._under_way)

    def tell(
        self,
        step: int,
        lr: float,
        loss: torch.Tensor,
        norm: torch.Tensor,
        *,
        save: bool,
        failed: bool,
        signal: int,
    ) -> None:
        """Start the sum of what each process knows; all call it after each step.

        Arguments are as in `Outcome`, but of this process; `loss` and `norm` are float32 scalars on
        its device, which nobody waits for.
        """
        flags = np.array([save, failed, *(signal == one for one in SIGNALS)], dtype=np.float32)
        sent = send(*stage(loss.device, flags), loss.device)
        sums = distributed.total(torch.cat([torch.stack([loss, norm]), sent]))
        self._under_way.append((step, lr, HostCopy(sums)))

    def read(self) -> Outcome:
        """Wait for the first of the sums under way."""
        step, lr, copy = self._under_way.popleft()
        (sums,) = copy.wait()
        loss, norm = (sums[:2] / distributed.world_size()).tolist()
        save, failed, *signals = (sums[2:] > 0).tolist()
        signal = next((one for one, sent in zip(SIGNALS, signals, strict=True) if sent), 0)
        return Outcome(step, lr, loss, norm, save, failed, int(signal))
