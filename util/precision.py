"""Float32 that is float32, whatever `torch.backends` says in the rest of the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def plain_float32(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """No autocast inside the block, and products of float32 numbers as exact as sums of them.

    Only settings by the name of `fp32_precision` are read: once a user has set one, PyTorch refuses
    to read the older ones of the same meaning, and with them `cudnn.flags`. The settings are those
    of the whole process: one thread at a time may enter.

    Args:
        device: where the block computes.
        tf32: let convolutions use TF32.
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
