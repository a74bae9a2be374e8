"""Weights in a file: a training checkpoint, a published `.pth`, or safetensors with a config."""

import argparse
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from hub.published import CONFIG
from util.errors import UserError, require_file
from util.files import read_json, replacing

FINGERPRINT = "tokenizer_fingerprint"
# What torch.load is seen to raise on damaged files; OSError also covers a file that vanished.
_DAMAGED = (pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError)
_DAMAGED += (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
_DAMAGED += (OverflowError, OSError)


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read, or holds other bytes than were written."""


def read_checkpoint(path: str | Path, flag: str, mmap: bool = True) -> dict[str, Any]:
    """Read a `torch.save` dictionary of tensors, plain values and `argparse.Namespace` only.

    Its checksums are compared; `mmap` maps the tensors, for those copied right away. A file that is
    damaged or could run code is a `DamagedCheckpoint`, a missing or another one a `UserError`.
    """
    path = require_file(path, flag, "a checkpoint written by torch.save")
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                parts = archive.infolist()
                # Packed or overlapping parts could unpack to anything, and torch.save writes none.
                packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
                large = sum(part.file_size for part in parts) > path.stat().st_size
                if packed or large or archive.testzip():  # which compares checksums, 3 GB/s
                    raise zipfile.BadZipFile(path)
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


def atomic_save(obj: Any, path: str | Path, previous: Path | None = None) -> None:
    """`torch.save` to `path` such that a reader sees the old file or the whole new one.

    The old one goes to `previous`, if given. Nothing is left of one that cannot be written.
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


def load_weights(model: nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Copy `state`, of any floating types, into `model`, which gets memory if it is on meta.

    A `UserError` begins with `what`, flag and file, and names the first entry that is missing,
    unexpected, of another shape or not finite.
    """
    expected = model.state_dict()
    faults = [
        f"weight {name} {fault}"
        for name in {**expected, **state}
        if (fault := _fault(state.get(name), expected.get(name)))
    ]
    if faults:
        others = f" (and {len(faults) - 1} more differences)" if len(faults) > 1 else ""
        raise UserError(f"{what}: {faults[0]}{others}")
    if any(tensor.is_meta for tensor in expected.values()):
        model.to_empty(device="cpu")  # buffers outside the state dict would stay undefined
    model.load_state_dict(dict(state))


def _fault(tensor: Any, expected: torch.Tensor | None) -> str | None:
    if expected is None:
        shape = tuple(getattr(tensor, "shape", ()))
        return f"of shape {shape} is unexpected, expected no such name"
    shape = tuple(expected.shape)
    if not isinstance(tensor, torch.Tensor):
        found = "missing" if tensor is None else f"a {type(tensor).__name__}"
        return f"is {found}, expected shape {shape}"
    if tuple(tensor.shape) != shape:
        return f"has shape {tuple(tensor.shape)}, expected {shape}"
    if tensor.is_meta or tensor.layout != torch.strided or not tensor.is_floating_point():
        return f"is {tensor.type()}, expected plain floating point"
    if not tensor.isfinite().all():
        return "holds NaN or infinity, expected finite numbers"
    return None


@dataclass(frozen=True)
class Weights:
    """What a file says of a network."""

    state: dict[str, torch.Tensor]  # on the CPU
    config: dict[str, Any] | None  # its constructor's arguments; None if not said
    flags: Mapping[str, Any]  # the config, else the flags of the run that trained it, if said
    fingerprint: str | None  # of the tokenizer whose tokens it was trained on, if said
    others: tuple[str, ...]  # further entries of the file, not read

    @property
    def blind_queries(self) -> bool:
        """Whether queries learned not to see one another; where nothing is said, they see."""
        return bool(self.flags.get("blind_queries", False))

    @property
    def label_drop_prob(self) -> float | None:
        """With which it was trained, if the file says so."""
        value = self.flags.get("label_drop_prob")
        return float(value) if isinstance(value, int | float) else None

    def require_tokenizer(self, expected: str | None, what: str) -> None:
        """Refuse weights that record another tokenizer than `expected`; None is any."""
        if self.fingerprint and expected and self.fingerprint != expected:
            raise UserError(
                f"{what}: was trained on tokens of tokenizer {self.fingerprint[:12]}, expected "
                f"this run's {expected[:12]} (--vqgan_path)"
            )


def read_weights(path: str | Path, flag: str) -> Weights:
    """Read a `torch.save` dictionary, or safetensors with `config.json` beside them.

    A `UserError` begins with `flag`, which named the file: missing, damaged or something else.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return weights_in(read_checkpoint(path, flag), f"{flag}: {path}")
    require_file(path, flag, "safetensors")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedCheckpoint(
            f"{flag}: {path} cannot be read ({error}), expected safetensors"
        ) from error
    config = read_values(path.with_name(CONFIG), flag)
    known = config.pop(FINGERPRINT, None)
    return weights_in({"model": state, "config": config, FINGERPRINT: known}, f"{flag}: {path}")


def weights_in(content: Mapping[str, Any], what: str) -> Weights:
    """Find the weights in what a file holds; a `UserError` begins with `what`, the file."""
    if "model" not in content:
        raise UserError(f"{what}: holds no 'model' entry, expected the weights there")
    state, config, flags = content["model"], content.get("config"), content.get("args")
    if not isinstance(state, dict):
        raise UserError(f"{what}: weights are a {type(state).__name__}, expected a dictionary")
    if not isinstance(config, dict | None):
        raise UserError(f"{what}: config is {config!r}, expected names and values")
    if isinstance(flags, argparse.Namespace):  # as published, and ours of earlier days
        flags = vars(flags)
    flags = next((said for said in (config, flags) if isinstance(said, dict)), {})
    fingerprint = content.get(FINGERPRINT)
    fingerprint = fingerprint if isinstance(fingerprint, str) else None
    # The rest is of use to the run that wrote it only.
    others = tuple(str(name) for name in content if name not in ("model", "config", FINGERPRINT))
    return Weights(state, config, flags, fingerprint, others)


def plain_flags(args: argparse.Namespace) -> dict[str, Any]:
    """A run's flags as `torch.load` opens them with its defaults: paths become strings."""
    flags = vars(args).items()
    return {name: str(value) if isinstance(value, PurePath) else value for name, value in flags}


def read_values(path: Path, flag: str) -> dict[str, Any]:
    """Read the names and values in a JSON file, which `flag` named, such as `config.json`."""
    path = require_file(path, flag, "a JSON of names and values")
    try:
        values = read_json(path)
    except ValueError as error:
        raise UserError(f"{flag}: {path} is no readable JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{flag}: {path} holds {type(values).__name__}, expected names and values")
    return values


def write_safetensors(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors bit by bit, each with memory of its own, as safetensors; atomically."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with replacing(path) as temporary:
        # Not the library's own file: nobody else could read that.
        temporary.write_bytes(save(tensors, {"format": "pt"}))
