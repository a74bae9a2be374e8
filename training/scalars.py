"""Scalars over a run: TensorBoard, and Weights & Biases where asked for."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from util import distributed
from util.errors import UserError, blame

_EVENTS = "events.out.tfevents."  # TensorBoard's files, before the second they were begun in


class ScalarLog:
    """Writes scalars to a TensorBoard folder on one process; does nothing where there is none.

    What cannot be written (a full disk) does not stop that process at once, for the others would
    wait for it in vain: `check` stops all, `close` this one. From `purge_step` on readers drop what
    the folder holds already. The module `wandb`, if given, mirrors what is written.
    """

    def __init__(
        self,
        folder: Path | None,
        wandb: ModuleType | None = None,
        wandb_options: Mapping[str, Any] | None = None,
        purge_step: int | None = None,
    ) -> None:
        self._folder, self._writer, self._wandb = folder, None, None
        self._error: UserError | None = None
        self._hook_before = threading.excepthook
        if folder is None:
            return
        if wandb is not None:
            wandb.init(dir=str(folder), sync_tensorboard=True, **(wandb_options or {}))
            self._wandb = wandb
        threading.excepthook = self._thread_failed
        with self._holding_errors():
            _date_back(folder)
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    @property
    def failed(self) -> bool:
        return self._error is not None

    def add(self, step: int, values: Mapping[str, float | torch.Tensor]) -> None:
        """Log every value under its name at `step`."""
        for name, value in values.items():
            self._write("add_scalar", name, value, step)

    def add_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log an image, (H, W, 3) uint8."""
        self._write("add_image", name, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Bring what was added to the file, so that not even a killed process loses it."""
        self._write("flush")

    def check(self) -> None:
        """Raise a `UserError` on all processes if not all was written; all processes call it."""
        distributed.fail_together(self._raise_error)

    def close(self) -> None:
        """Flush to disk, and to Weights & Biases; a `UserError` if not all could be written."""
        if self._writer is not None:
            with self._holding_errors():
                self._writer.close()
        threading.excepthook = self._hook_before
        if self._wandb is not None:
            self._wandb.finish()
        self._raise_error()

    def _write(self, method: str, *values: object, **options: object) -> None:
        if self._writer is not None and not self.failed:
            with self._holding_errors():
                getattr(self._writer, method)(*values, **options)

    @contextmanager
    def _holding_errors(self) -> Iterator[None]:
        try:
            with blame(f"--log_dir: {self._folder}"):
                yield
        except UserError as error:
            self._error = self._error or error

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _thread_failed(self, args: threading.ExceptHookArgs) -> None:
        # TensorBoard's thread prints its traceback, besides raising the error in the next call.
        ours = isinstance(args.exc_value, OSError) and "tensorboard" in type(args.thread).__module__
        if not ours:
            self._hook_before(args)


def _date_back(folder: Path) -> None:
    """Rename event files of this second or the future (clock set back), to sort before ours."""
    now = f"{int(time.time()):010d}"
    for number, file in enumerate(sorted(folder.glob(f"{_EVENTS}*"))):
        begun, _, rest = file.name.removeprefix(_EVENTS).partition(".")
        # TensorBoard drops what a file has after the `purge_step` of one that sorts behind it.
        if begun >= now:  # a number sorts before the new file's host name
            file.rename(file.with_name(f"{_EVENTS}{now}.{number:05d}.{rest}"))


def import_wandb() -> ModuleType:
    """Import the optional Weights & Biases client, or raise a `UserError`."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "--use_wandb: the wandb package is not installed, expected `pip install wandb` first"
        ) from error
    return wandb
