"""Reading, writing and loading checkpoints: safe to read, atomic to write, strict to load."""

from __future__ import annotations

import argparse
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from util.errors import UserError, require_file
from util.files import replacing

# What torch.load is seen to raise on damaged files; OSError also covers a file that vanished.
_DAMAGED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    OverflowError,
    OSError,
)


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read, or holds other bytes than were written."""


def read_checkpoint(path: str | Path, flag: str, mmap: bool = True) -> dict[str, Any]:
    """Read a `torch.save` dictionary without letting it run code.

    Only tensors, plain Python values and `argparse.Namespace` are accepted. Tensors arrive on the
    CPU. The checksums in the file are compared: `torch.load` by itself takes what it finds.

    Args:
        path: the file.
        flag: the flag that named it, for the message.
        mmap: map tensors instead of reading them; for those that are copied right away.

    Raises:
        DamagedCheckpoint: damaged or refused.
        UserError: missing or not a dictionary.
    """
    path = require_file(path, flag, "a checkpoint written by torch.save")
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _compare_checksums(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipped)
    except _DAMAGED as error:
        raise DamagedCheckpoint(
            f"{flag}: {path} is not a readable checkpoint (damaged, or holding more than tensors "
            "and plain values), expected a dictionary written by torch.save"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{flag}: {path} holds a {type(content).__name__}, expected a dictionary")
    return content


def _compare_checksums(path: Path) -> None:
    """Raise `BadZipFile` unless every part of the file is what was written; 3 GB/s.

    Parts that are packed or overlap, which could unpack to anything, are nothing that `torch.save`
    writes.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
        if packed or sum(part.file_size for part in parts) > path.stat().st_size:
            raise zipfile.BadZipFile("packed")
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


def atomic_save(obj: Any, path: str | Path, previous: Path | None = None) -> None:
    """`torch.save` to `path` such that a reader sees the old file or the whole new one.

    Args:
        obj: what to save.
        path: the file.
        previous: where the old file goes, if there is one; None drops it.

    Raises:
        OSError: the file cannot be written; nothing of it is left behind.
    """
    try:
        with replacing(path, previous=previous) as temporary, temporary.open("wb") as file:
            torch.save(obj, file)
    except RuntimeError as error:
        # torch.save hides a full disk behind a complaint about file positions.
        cause = error.__context__
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise


def load_weights(model: nn.Module, state: Any, what: str) -> None:
    """Copy `state` into `model`, whose names and shapes it must match exactly.

    A model on the meta device gets memory on the CPU first, so that no weight is initialised in
    vain. (Buffers outside the state dict would stay undefined then.)

    Args:
        model: any module.
        state: names to tensors of any floating type.
        what: flag and file, the beginning of the message.

    Raises:
        UserError: the first entry that is missing, unexpected, of another shape or not finite.
    """
    if not isinstance(state, Mapping):
        raise UserError(f"{what}: weights are a {type(state).__name__}, expected a dictionary")
    expected = model.state_dict()
    faults = []
    for name, tensor in expected.items():
        shape = tuple(tensor.shape)
        found = state.get(name)
        if found is None:
            faults.append(f"weight {name} is missing, expected shape {shape}")
        elif not isinstance(found, torch.Tensor):
            faults.append(f"weight {name} is a {type(found).__name__}, expected shape {shape}")
        elif tuple(found.shape) != shape:
            faults.append(f"weight {name} has shape {tuple(found.shape)}, expected {shape}")
        elif found.is_meta or found.layout != torch.strided or not found.is_floating_point():
            faults.append(f"weight {name} is {found.type()}, expected plain floating point")
        elif not found.isfinite().all():
            faults.append(f"weight {name} holds NaN or infinity, expected finite numbers")
    for name, found in state.items():
        if name not in expected:
            shape = tuple(getattr(found, "shape", ()))
            faults.append(f"weight {name} of shape {shape} is unexpected, expected no such name")
    if faults:
        others = f" (and {len(faults) - 1} more differences)" if len(faults) > 1 else ""
        raise UserError(f"{what}: {faults[0]}{others}")
    if any(tensor.is_meta for tensor in expected.values()):
        model.to_empty(device="cpu")
    model.load_state_dict(dict(state))
