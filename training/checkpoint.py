"""LPD checkpoints: starting from published weights, saving and resuming a training run."""

import argparse
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed

from hub.weights import (
    DamagedCheckpoint,
    Weights,
    atomic_save,
    load_weights,
    plain_flags,
    read_checkpoint,
    read_weights,
    weights_in,
)
from models.lpd import LPD
from training.sharding import gathered, map_leaves
from util import distributed
from util.errors import UserError, blame
from util.geometry import grid_side

logger = logging.getLogger(__name__)

LAST = "checkpoint-last.pth"
PREVIOUS = "checkpoint-previous.pth"  # for the day the last one is damaged


class CheckpointSaver(AbstractContextManager):
    """Copies a training state to the host and writes it while training goes on, one at a time.

    `LAST` becomes `PREVIOUS` when its successor is complete, the one that the existing folder holds
    if it is good. Leaving the block waits for the file that is being written.
    """

    def __init__(self, folder: Path, last_is_good: bool = True) -> None:
        self._folder, self._last_is_good = folder, last_is_good
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        # Page-locked on a GPU machine, where getting it takes longer than the copy: kept.
        self._buffers: dict[int, torch.Tensor] = {}
        self._saved_at = time.monotonic()  # not the time of day, which may be set back

    @property
    def failed(self) -> bool:
        """Whether the last file could not be written, as far as is known."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def minutes_ago(self) -> float:
        """Minutes since the last save, or since this was made."""
        return (time.monotonic() - self._saved_at) / 60

    def reserve(self, content: dict[str, Any]) -> None:
        """Get the memory that saving takes, so that the first save need not."""
        if distributed.is_main():
            self._copy(content)

    def save(self, content: dict[str, Any], names: Sequence[str]) -> None:
        """Copy `content`, which may then change, and have it written; calls `wait` before."""
        started = time.perf_counter()
        self.wait()
        if distributed.is_main():
            copy, copied = self._copy(content), None
            if torch.cuda.is_initialized():
                copied = torch.cuda.Event()
                copied.record()
            waited = time.perf_counter() - started
            self._writing = self._thread.submit(self._write, copy, copied, names, waited)
        self._saved_at = time.monotonic()

    def wait(self) -> None:
        """Wait for the file under way; all processes call it, and raise UserError if it failed."""

        def settle() -> None:
            if self._writing is not None:
                writing, self._writing = self._writing, None
                with blame("--output_dir"):
                    writing.result()

        distributed.fail_together(settle)

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def _write(
        self, content: Any, copied: torch.cuda.Event | None, names: Sequence[str], waited: float
    ) -> None:
        if copied is not None:  # nothing is queued before the copies: the step waits for them
            waiting = time.perf_counter()
            copied.synchronize()
            waited += time.perf_counter() - waiting
        started = time.perf_counter()
        for name in names:
            rotates = name == LAST and self._last_is_good
            previous = self._folder / PREVIOUS if rotates else None
            atomic_save(content, self._folder / name, previous)
            self._last_is_good |= name == LAST
        seconds = time.perf_counter() - started
        line = "saved %s in %.1f s beside training; the step waited %.2f s"
        logger.info(line, " and ".join(names), seconds, waited)

    def _copy(self, content: dict[str, Any]) -> dict[str, Any]:
        places = count()

        def copy(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            place = next(places)
            buffer = self._buffers.get(place)
            if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
                buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
                self._buffers[place] = buffer
            return buffer.copy_(value, non_blocking=True)

        return map_leaves(content, copy)


@dataclass
class TrainingState:
    """All that an interrupted run needs; no random state, see `util.streams`."""

    model: LPD  # not its DDP wrapper
    optimizer: torch.optim.Optimizer
    args: argparse.Namespace  # the run's flags
    epoch: int = -1  # last finished one; -1 before the first
    tokenizer_fingerprint: str | None = None  # of what made the tokens, if known
    global_batch: int = 1  # images per step, over all processes
    num_images: int | None = None  # in the data, if known
    step: int = 0  # steps done of epoch `epoch + 1`
    # The sum of this process's losses in them, a float32 scalar on the training device.
    loss_sum: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    # The same of all processes of the run that was restored, by rank.
    loss_sums: list[float] = field(default_factory=lambda: [0.0])

    def content(self) -> dict[str, Any]:
        """Return, on rank 0, the published form and the place in the epoch; all call together."""
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step_in_epoch": self.step,
            "epoch_loss": distributed.gather(self.loss_sum.item()),
            "global_batch": self.global_batch,
            "num_images": self.num_images,
            "args": plain_flags(self.args),  # `torch.load` by itself refuses a Namespace
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
        }
        return map_leaves(content, gathered)

    def restore(self, path: Path) -> None:
        """Continue from a training checkpoint; from between two epochs, if it says no place in one.

        Raises `DamagedCheckpoint`, with nothing changed, or a `UserError` if of another model.
        """
        # The optimiser keeps the tensors it is given: they must not hang on the file.
        content, what = read_checkpoint(path, "--resume", mmap=False), f"--resume: {path}"
        weights = weights_in(content, what)
        load_weights(self.model, weights.state, what)
        weights.require_tokenizer(self.tokenizer_fingerprint, what)
        _check_queries(weights, self.model.blind_queries, what)
        for key in ("optimizer", "epoch"):
            if key not in content:
                raise UserError(
                    f"{what}: holds no {key!r} entry, expected a checkpoint of this model"
                )
        self._restore_optimizer(content["optimizer"], what)
        self._restore_place(content, what)
        for name, saved, own in (
            ("--seed", weights.flags.get("seed"), getattr(self.args, "seed", None)),
            ("images in the data", content.get("num_images"), self.num_images),
        ):
            if None not in (saved, own) and saved != own:
                logger.warning(
                    "%s: saved with %s %s, this run has %s: images come in another order, so an "
                    "epoch that was begun does not see each of them once",
                    *(what, name, saved, own),
                )

    def _restore_optimizer(self, state: Any, what: str) -> None:
        """Take up the moments of every parameter; the settings are those of this run's flags."""
        own = self.optimizer.state_dict()["param_groups"]
        try:
            places = [group["params"] for group in state["param_groups"]]
            groups = [{**group, "params": place} for group, place in zip(own, places, strict=True)]
            self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{what}: optimizer state does not fit this model: {error}") from error
        for parameter in self.model.parameters():
            moments = self.optimizer.state.get(parameter)
            shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            for name, shape in shapes.items():
                value = moments.get(name) if isinstance(moments, dict) else None
                known = isinstance(value, torch.Tensor) and value.shape == shape
                if not (known and value.isfinite().all()):
                    raise UserError(
                        f"{what}: optimizer state holds no finite {name} of shape {tuple(shape)}, "
                        "expected it for all weights"
                    )

    def _restore_place(self, content: dict[str, Any], what: str) -> None:
        """Take up an epoch where it was left: after as many images, if the batch has changed."""
        epoch, step = content["epoch"], content.get("step_in_epoch", 0)
        batch = content.get("global_batch", self.global_batch)
        sums = content.get("epoch_loss", [0.0])
        whole = all(isinstance(one, int) for one in (epoch, step, batch))
        whole = whole and epoch >= -1 and step >= 0 and batch >= 1
        losses = isinstance(sums, list) and all(isinstance(one, float) for one in sums)
        if not (whole and losses and sums and all(map(math.isfinite, sums))):
            raise UserError(
                f"{what}: found {step!r} steps after epoch {epoch!r} with {batch!r} images each, "
                f"epoch_loss {sums!r}, expected whole numbers and finite losses"
            )
        self.epoch, self.step, self.loss_sums = epoch, step, sums
        if step and batch != self.global_batch:
            self.step = step * batch // self.global_batch
            self.loss_sums = [value * self.step / step for value in sums]
            logger.warning(
                "%s: saved with %d images a step, this run has %d: its epoch goes on after %d of "
                "its images",
                *(what, batch, self.global_batch, self.step * self.global_batch),
            )

    def join(self, device: torch.device) -> None:
        """Take this process's share of the epoch that was restored, once the processes have met."""
        places = set(distributed.gather((self.epoch, self.step)))
        if len(places) > 1:
            raise UserError(
                f"--resume: found checkpoints after (epoch, step) {sorted(places)} on different "
                "processes, expected the same files on all machines"
            )
        sums = self.loss_sums
        if len(sums) != distributed.world_size():
            sums = [math.fsum(sums) / len(sums)] * distributed.world_size()
        self.loss_sum = torch.tensor(sums[distributed.rank()], device=device)


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints that a run goes on from, newest first, as far as they are there."""
    return [path for path in (folder / LAST, folder / PREVIOUS) if path.exists()]


def load_newest(paths: Sequence[Path], load: Callable[[Path], object]) -> Path:
    """Load the first checkpoint that is not damaged and return it; warn of those before it.

    `load` raises `DamagedCheckpoint` where nothing can be read, and has changed nothing then; so
    does this if all are damaged.
    """
    problems: list[str] = []
    for path in paths:
        try:
            load(path)
        except DamagedCheckpoint as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logger.warning("%s; the one before it takes its place", problem)
        return path
    raise DamagedCheckpoint("; ".join(problems))


def load_pretrained(
    model: LPD,
    path: str | Path,
    resize: bool = False,
    tokenizer_fingerprint: str | None = None,
    flag: str = "--pretrained_ckpt",
) -> None:
    """Load the weights of a published or training checkpoint, or raise a `UserError`.

    `resize`, for training, lets `pos_embed` of another grid through, resized (256 -> 512 px), and
    the model learn otherwise than before. A tokenizer that is recorded must be the run's, if that
    is given.
    """
    weights, what = read_weights(path, flag), f"{flag}: {path}"
    weights.require_tokenizer(tokenizer_fingerprint, what)
    if not resize:
        _check_queries(weights, model.blind_queries, what)
        if weights.label_drop_prob is not None:
            model.label_drop_prob = weights.label_drop_prob
    state, own = weights.state, model.pos_embed
    given = state.get("pos_embed")
    same_width = isinstance(given, torch.Tensor) and given.dim() == 3
    if resize and same_width and given.shape[::2] == own.shape[::2] and given.shape != own.shape:
        with blame(f"{what}: pos_embed"):
            state = {**state, "pos_embed": resize_pos_embed(given, model.grid.num_tokens)}
        places = (given.shape[1] - 1, model.grid.num_tokens)
        logger.info("resized pos_embed from %d to %d tokens", *places)
    load_weights(model, state, what)


def resize_pos_embed(pos_embed: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Resize (1, 1 + M, C) but its row 0, the class token's, to another square grid (section 8)."""
    old, new = ([grid_side(count)] * 2 for count in (pos_embed.shape[1] - 1, num_tokens))
    return resample_abs_pos_embed(pos_embed, new, old, num_prefix_tokens=1, antialias=False)


def _check_queries(weights: Weights, blind: bool, what: str) -> None:
    """Refuse a checkpoint whose queries learned to see one another, or not to, unlike the run's."""
    if weights.blind_queries != blind:
        words = {True: "with --blind_queries", False: "without --blind_queries"}
        raise UserError(
            f"{what}: was trained {words[weights.blind_queries]}, expected one {words[blind]}"
        )
