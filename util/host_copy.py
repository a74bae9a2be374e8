"""Tensors on their way to a GPU and back while host and GPU go on."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; the host does not wait for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # other memory is copied while the host waits
    return tensor.to(device, non_blocking=True)


class HostCopy:
    """Copies of tensors, started when this is made and awaited when they are needed.

    Args:
        tensors: on one device, results of work queued on its current stream. Those on the host
            are not copied.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if tensors[0].device.type != "cuda":
            self._copies = tensors
            return
        # Only page-locked memory is written without holding the host up.
        self._copies = tuple(
            torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
            for tensor in tensors
        )
        self._arrived = torch.cuda.Event()
        self._arrived.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors on the host, in the order given."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copies
