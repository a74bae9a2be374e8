"""Tensors on their way to a GPU and back while host and GPU go on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def plain_float32(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """Compute float32 in float32 inside the block: no autocast, and no TF32 but in convolutions.

    The settings are those of the whole process: one thread at a time may enter.
    """
    # Once a user has set a `fp32_precision`, PyTorch refuses to read the older settings of the same
    # meaning, and with them `cudnn.flags`.
    convolutions = [torch.backends.cudnn.conv, torch.backends.mkldnn.conv]
    settings = [*convolutions, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "tf32" if tf32 and setting in convolutions else "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            # What only followed `torch.backends.fp32_precision` goes on following it.
            setting.fp32_precision = "none"
            if setting.fp32_precision != precision:
                setting.fp32_precision = precision


def has_bf16_products() -> bool:
    """Whether a CPU like this one multiplies bfloat16 by oneDNN: 8 to 46 times faster than not."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; the host does not wait for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # other memory is copied while the host waits
    return tensor.to(device, non_blocking=True)


class HostCopy:
    """Copies of a GPU's tensors, started when this is made; others are taken as they are."""

    def __init__(self, *tensors: Tensor) -> None:
        self._copies, self._arrived = tensors, None
        if tensors[0].device.type == "cuda":
            # Only page-locked memory is written without holding the host up.
            pinned = [torch.empty_like(one, device="cpu", pin_memory=True) for one in tensors]
            copies = zip(pinned, tensors, strict=True)
            self._copies = tuple(copy.copy_(one, non_blocking=True) for copy, one in copies)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> tuple[Tensor, ...]:
        """Wait for the tensors on the host, in the order given."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copies
