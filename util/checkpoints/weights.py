"""Weights in a file: a training checkpoint, a published `.pth`, or safetensors with a config."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from util.checkpoints.files import DamagedCheckpoint, read_checkpoint
from util.errors import UserError, require_file
from util.files import replacing

SAFETENSORS, CONFIG = "model.safetensors", "config.json"
FINGERPRINT = "tokenizer_fingerprint"
# What `Weights` takes from a checkpoint; the rest is of use to the run that wrote it only.
_CARRIED = {"model", "config", FINGERPRINT}


@dataclass(frozen=True)
class Weights:
    """What a file says of a network.

    Attributes:
        state: names to tensors, on the CPU.
        config: its constructor's arguments; None if the file does not say.
        flags: of the run that trained it, as far as the file says.
        fingerprint: of the tokenizer whose tokens it was trained on, if the file says.
        others: further entries of the file, not read.
    """

    state: dict[str, torch.Tensor]
    config: dict[str, Any] | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None
    others: tuple[str, ...] = ()

    @property
    def blind_queries(self) -> bool:
        """Whether queries learned not to see one another; where nothing is said, they see."""
        return bool(self._said.get("blind_queries", False))

    @property
    def label_drop_prob(self) -> float | None:
        """With which it was trained, if the file says so."""
        found = self._said.get("label_drop_prob")
        return float(found) if isinstance(found, int | float) else None

    @property
    def _said(self) -> Mapping[str, Any]:
        return self.flags if self.config is None else self.config


def weights_in_folder(folder: Path) -> Path:
    """The file of weights in a folder that holds one network's.

    Raises:
        ValueError: there is none, or several.
        OSError: the folder cannot be read.
    """
    names = sorted(file.name for file in folder.iterdir())
    try:
        return folder / choose_weights(names)[-1]
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def choose_weights(names: Sequence[str]) -> list[str]:
    """The files of a folder or repository that hold one network's weights.

    Raises:
        ValueError: there are none, or several.
    """
    if SAFETENSORS in names and CONFIG in names:
        return [CONFIG, SAFETENSORS]
    found = [name for name in names if name.endswith((".pth", ".pt"))]
    if len(found) != 1:
        listed = ", ".join([*names[:5], "..."][: len(names)]) or "no files"
        raise ValueError(f"found {listed}, expected {CONFIG} and {SAFETENSORS}, or one .pth")
    return found


def read_weights(path: str | Path, flag: str) -> Weights:
    """Read a `torch.save` dictionary, or safetensors with `config.json` beside them.

    Args:
        path: the file.
        flag: what named it, for the message.

    Raises:
        UserError: missing, damaged or something else.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, flag)
    return weights_in(read_checkpoint(path, flag), f"{flag}: {path}")


def weights_in(content: Mapping[str, Any], what: str) -> Weights:
    """The weights in what `torch.save` wrote.

    Args:
        content: the dictionary.
        what: the file, for the message.

    Raises:
        UserError: there are none.
    """
    if "model" not in content:
        raise UserError(f"{what}: holds no 'model' entry, expected the weights there")
    state, config = content["model"], content.get("config")
    if not isinstance(state, dict):
        raise UserError(f"{what}: weights are a {type(state).__name__}, expected a dictionary")
    if not isinstance(config, dict | None):
        raise UserError(f"{what}: config is {config!r}, expected names and values")
    flags, fingerprint = content.get("args"), content.get(FINGERPRINT)
    if isinstance(flags, argparse.Namespace):  # as published, and ours of earlier days
        flags = vars(flags)
    return Weights(
        state,
        config,
        flags if isinstance(flags, dict) else {},
        fingerprint if isinstance(fingerprint, str) else None,
        tuple(str(name) for name in content if name not in _CARRIED),
    )


def plain_flags(args: argparse.Namespace) -> dict[str, Any]:
    """A run's flags as `torch.load` opens them with its defaults: paths become strings."""
    flags = vars(args).items()
    return {name: str(value) if isinstance(value, PurePath) else value for name, value in flags}


def _read_safetensors(path: Path, flag: str) -> Weights:
    path = require_file(path, flag, "safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedCheckpoint(
            f"{flag}: {path} cannot be read ({error}), expected safetensors"
        ) from error
    config = read_values(path.with_name(CONFIG), flag)
    fingerprint = config.pop(FINGERPRINT, None)
    return Weights(state, config, {}, fingerprint if isinstance(fingerprint, str) else None)


def read_values(path: Path, flag: str) -> dict[str, Any]:
    """The names and values in a JSON file, such as `config.json`.

    Args:
        path: the file.
        flag: what named it, for the message.

    Raises:
        UserError: missing or something else.
    """
    path = require_file(path, flag, "a JSON of names and values")
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{flag}: {path} is no readable JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{flag}: {path} holds {type(values).__name__}, expected names and values")
    return values


def write_safetensors(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors bit by bit, each with memory of its own, as safetensors; atomically.

    Args:
        state: names to tensors, on any device.
        path: the file.

    Raises:
        OSError: the file cannot be written; nothing of it is left behind.
    """
    tensors, memory = {}, set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in memory or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        memory.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as other files here: the library's own is for nobody else
        try:
            save_file(tensors, temporary, {"format": "pt"})
            temporary.chmod(mode)
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from error
