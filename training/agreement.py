"""What the processes tell one another after every training step: one sum, read late on a GPU."""

from collections import deque
from typing import NamedTuple

import torch

from util import distributed
from util.device import HostCopy, to_device
from util.signals import SIGNALS


class Outcome(NamedTuple):
    """What a process has met in a step, or all of them."""

    step: int  # its number in the whole run, from 0
    lr: float
    # Means over the processes; of one, float32 scalars on its device, which nobody waits for.
    loss: float | torch.Tensor  # nats per token
    norm: float | torch.Tensor  # of the gradient before clipping
    save: bool  # whether it is time to save
    failed: bool  # whether a process could not read its data or write a file
    signal: int  # the one that a process was asked to stop with; 0 for none


class Agreement:
    """All-reduces of the last steps, under way to the host. Its length is their number."""

    def __init__(self) -> None:
        self._under_way: deque[tuple[int, float, HostCopy]] = deque()

    def __len__(self) -> int:
        return len(self._under_way)

    def tell(self, met: Outcome) -> None:
        """Start the sum of what each process has met; all call it after each step."""
        signals = [met.signal == one for one in SIGNALS]
        flags = torch.tensor([met.save, met.failed, *signals]).float()
        sums = torch.cat([torch.stack([met.loss, met.norm]), to_device(flags, met.loss.device)])
        self._under_way.append((met.step, met.lr, HostCopy(distributed.total(sums))))

    def read(self) -> Outcome:
        """Wait for the first of the sums under way."""
        step, lr, copy = self._under_way.popleft()
        (sums,) = copy.wait()
        loss, norm = (sums[:2] / distributed.world_size()).tolist()
        save, failed, *signals = (sums[2:] > 0).tolist()
        signal = next((one for one, sent in zip(SIGNALS, signals, strict=True) if sent), 0)
        return Outcome(step, lr, loss, norm, save, failed, int(signal))
