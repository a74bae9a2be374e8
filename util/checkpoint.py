"""LPD checkpoints: starting from published weights, saving and resuming a training run."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from models.lpd import LPD
from util.checkpoint_io import load_weights, read_checkpoint
from util.errors import UserError, blame
from util.geometry import grid_side
from util.sharding import gathered

logger = logging.getLogger(__name__)

LAST = "checkpoint-last.pth"


@dataclass
class TrainingState:
    """All that an interrupted run needs to go on after its last finished epoch.

    Attributes:
        model: the bare network (not its DDP wrapper).
        optimizer: its optimiser.
        args: the run's flags.
        epoch: last finished epoch; -1 before the first.
        tokenizer_fingerprint: which tokenizer the tokens came from, if known.
    """

    model: LPD
    optimizer: torch.optim.Optimizer
    args: argparse.Namespace
    epoch: int = -1
    tokenizer_fingerprint: str | None = None

    def content(self) -> dict[str, Any]:
        """What the published checkpoint form holds; all processes of a sharded run take part."""
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "args": self.args,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
        }
        return gathered(content)

    def restore(self, path: Path, flag: str = "--resume") -> None:
        """Continue from a training checkpoint.

        Raises:
            UserError: unreadable, of another model, or not a training checkpoint.
        """
        # The optimiser keeps the tensors it is given: they must not hang on the file.
        content = read_checkpoint(path, flag, mmap=False)
        what = f"{flag}: {path}"
        load_weights(self.model, _entry(content, "model", what), what)
        _check_tokenizer(content, self.tokenizer_fingerprint, what)
        self._restore_optimizer(_entry(content, "optimizer", what), what)
        epoch = _entry(content, "epoch", what)
        if not isinstance(epoch, int) or epoch < -1:
            raise UserError(f"{what}: epoch is {epoch!r}, expected the last finished epoch")
        self.epoch = epoch

    def _restore_optimizer(self, found: Any, what: str) -> None:
        try:
            for group in found["param_groups"]:  # of an older run, maybe: how, not what it computes
                group["fused"] = True
            self.optimizer.load_state_dict(found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{what}: optimizer state does not fit this model: {error}") from error
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if name != "step" and value.shape != parameter.shape:
                    raise UserError(
                        f"{what}: optimizer state {name} has shape {tuple(value.shape)}, "
                        f"expected {tuple(parameter.shape)}"
                    )


def load_pretrained(
    model: LPD,
    path: str | Path,
    resize: bool = False,
    tokenizer_fingerprint: str | None = None,
    flag: str = "--pretrained_ckpt",
) -> None:
    """Load the weights of a published or training checkpoint.

    Args:
        model: the network to fill.
        path: a `torch.save` dictionary with the weights under `model`.
        resize: let `pos_embed` of another grid through, resized (256 -> 512 px training).
        tokenizer_fingerprint: of the run's tokenizer; None does not compare it with the one that a
            training checkpoint records.
        flag: the flag that named the file.

    Raises:
        UserError: unreadable, of another model size or of another tokenizer.
    """
    content = read_checkpoint(path, flag)
    what = f"{flag}: {path}"
    _check_tokenizer(content, tokenizer_fingerprint, what)
    state = _entry(content, "model", what)
    if not isinstance(state, dict):
        raise UserError(f"{what}: weights are a {type(state).__name__}, expected a dictionary")
    found = state.get("pos_embed")
    num_tokens = model.grid.num_tokens
    if resize and isinstance(found, torch.Tensor) and _same_width(found, model.pos_embed):
        with blame(f"{what}: pos_embed"):
            state = {**state, "pos_embed": resize_pos_embed(found, num_tokens)}
        if found.shape != model.pos_embed.shape:
            logger.info("resized pos_embed from %d to %d tokens", found.shape[1] - 1, num_tokens)
    load_weights(model, state, what)


def resize_pos_embed(pos_embed: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Resize position embeddings to another square grid (method section 8).

    Args:
        pos_embed: (1, 1 + M, C); row 0, the class token's, stays as it is.
        num_tokens: N.

    Returns:
        (1, 1 + N, C): the grid resized bicubically.

    Raises:
        ValueError: M or N is not a square number.
    """
    old_side, new_side = grid_side(pos_embed.shape[1] - 1), grid_side(num_tokens)
    if old_side == new_side:
        return pos_embed
    grid = pos_embed[:, 1:].float().unflatten(1, (old_side, old_side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    grid = grid.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :1], grid], dim=1)


def _check_tokenizer(content: dict[str, Any], expected: str | None, what: str) -> None:
    """Refuse a checkpoint that records another tokenizer than the run's."""
    found = content.get("tokenizer_fingerprint")
    if found and expected and found != expected:
        raise UserError(
            f"{what}: was trained on tokens of tokenizer {str(found)[:12]}, "
            f"expected this run's {expected[:12]} (--vqgan_path)"
        )


def _same_width(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.dim() == 3 and found.shape[::2] == expected.shape[::2]


def _entry(content: dict[str, Any], key: str, what: str) -> Any:
    if key not in content:
        raise UserError(f"{what}: holds no {key!r} entry, expected a checkpoint of this model")
    return content[key]
