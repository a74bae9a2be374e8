"""Tensors on their way to a GPU and back while host and GPU go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def plain_float32(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """Compute float32 in float32 inside the block: no autocast, and no TF32 but in convolutions.

    Only settings by the name of `fp32_precision` are read: once a user has set one, PyTorch refuses
    to read the older ones of the same meaning, and with them `cudnn.flags`. The settings are those
    of the whole process: one thread at a time may enter.
    """
    backends, conv = torch.backends, "tf32" if tf32 else "ieee"
    with (
        torch.autocast(device.type, enabled=False),
        _set(backends.cudnn.conv, conv),
        _set(backends.mkldnn.conv, conv),
        _set(backends.cuda.matmul, "ieee"),
        _set(backends.mkldnn.matmul, "ieee"),
    ):
        yield


@contextmanager
def _set(setting: Any, precision: str) -> Iterator[None]:
    before = setting.fp32_precision
    setting.fp32_precision = precision
    try:
        yield
    finally:
        # What only followed `torch.backends.fp32_precision` goes on following it.
        setting.fp32_precision = "none"
        if setting.fp32_precision != before:
            setting.fp32_precision = before


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; the host does not wait for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # other memory is copied while the host waits
    return tensor.to(device, non_blocking=True)


class HostCopy:
    """Copies of a device's tensors, started when this is made and awaited when they are needed.

    Those on the host are not copied.
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
