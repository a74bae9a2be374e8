"""Scalars over a run: TensorBoard, and Weights & Biases where asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from util.errors import UserError


class ScalarLog:
    """Writes scalars on one process; does nothing without a folder.

    Args:
        folder: TensorBoard folder; None for the processes that do not log.
        wandb: the module, mirroring what is written to TensorBoard, if wanted.
        wandb_options: project, name and config of the run there.
    """

    def __init__(
        self,
        folder: Path | None,
        wandb: ModuleType | None = None,
        wandb_options: Mapping[str, Any] | None = None,
    ) -> None:
        if folder is not None and wandb is not None:
            wandb.init(dir=str(folder), sync_tensorboard=True, **(wandb_options or {}))
        self._writer = SummaryWriter(str(folder)) if folder is not None else None
        self._wandb = wandb if folder is not None else None

    def add(self, step: int, values: Mapping[str, float | torch.Tensor]) -> None:
        """Log every value under its name at `step`."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush to disk, and to Weights & Biases."""
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()


def import_wandb() -> ModuleType:
    """The optional Weights & Biases client.

    Raises:
        UserError: it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "--use_wandb: the wandb package is not installed, expected `pip install wandb` first"
        ) from error
    return wandb
