"""A checked training run: flags, data and resumed state, ready to start (method section 8)."""

import argparse
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.optim import param_groups_weight_decay

from dataset import batches
from dataset.image_folder import list_images
from dataset.token_cache import TokenCache
from models.lpd import LPD
from orders.group_sizes import read_group_sizes_list, training_group_sizes
from orders.sources import read_group_sizes
from training.checkpoint import LAST, TrainingState, checkpoints_in, load_newest
from util.errors import UserError, blame
from util.geometry import TokenGrid

logger = logging.getLogger(__name__)

BETAS = (0.9, 0.95)
LR_SCHEDULES = ("constant+cosine", "constant", "cosine")


@dataclass(frozen=True)
class LRSchedule:
    """Learning rate over fractional epochs: linear warm-up, then one of `LR_SCHEDULES`."""

    kind: str
    lr: float  # after the warm-up
    min_lr: float  # where the cosine ends
    epochs: int  # length of the run
    warmup_epochs: int
    lr_decay_start_epoch: int  # where `constant+cosine` begins to fall

    def at(self, epoch: float) -> float:
        """Return the learning rate at fractional epoch `epoch` in [0, epochs)."""
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        if self.kind == "constant":
            return self.lr
        start = self.warmup_epochs if self.kind == "cosine" else self.lr_decay_start_epoch
        if epoch < start:
            return self.lr
        progress = (epoch - start) / (self.epochs - start)
        return self.min_lr + (self.lr - self.min_lr) / 2 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Training:
    """What a training run has been given, checked and ready to start."""

    state: TrainingState
    source: batches.TokenSource
    schedule: LRSchedule
    group_size_lists: list[list[int]]  # one of them is drawn per optimiser step
    resumed_from: Path | None = None  # the checkpoint of `state`; None for a fresh start

    @property
    def share(self) -> int:
        """Images per process and optimiser step."""
        return self.state.args.batch_size * self.state.args.accum_iter

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return self.source.num_samples // self.state.global_batch

    @property
    def steps_done(self) -> int:
        """Optimiser steps of the whole run so far."""
        return (self.state.epoch + 1) * self.steps_per_epoch + self.state.step


def build_training(
    args: argparse.Namespace,
    model: LPD,
    source: batches.TokenSource,
    fingerprint: str | None,
    world_size: int,
) -> Training:
    """Check the training flags, make the optimiser and resume what there is to resume.

    The model is on its device; learning rate and steps depend on the number of processes. Raises a
    `UserError` that names the flag or file that cannot work.
    """
    if args.fsdp and (world_size == 1 or args.online_eval):
        found = "--online_eval" if args.online_eval else "one process"
        raise UserError(f"--fsdp: found {found}, expected training alone, on several processes")
    share = args.batch_size * args.accum_iter
    with blame("--batch_size" if args.accum_iter == 1 else "--batch_size times --accum_iter"):
        steps = batches.steps_per_epoch(source.num_samples, share, world_size)
    global_batch = share * world_size
    lr = args.lr if args.lr is not None else args.blr * global_batch / 256
    decay = (args.warmup_epochs, args.lr_decay_start_epoch)
    schedule = LRSchedule(args.lr_schedule, lr, args.min_lr, args.epochs, *decay)
    num_tokens = model.grid.num_tokens
    if args.group_sizes_list is None:
        group_size_lists = [read_group_sizes(args, num_tokens)]
    elif args.group_sizes_list == "auto":
        group_size_lists = training_group_sizes(num_tokens)
    else:
        with blame("--group_sizes_list"):
            group_size_lists = read_group_sizes_list(args.group_sizes_list, num_tokens)
    # No decay on biases and one-dimensional parameters; embeddings are decayed.
    parameters = param_groups_weight_decay(model, args.weight_decay)
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=BETAS, fused=True)
    warn_of_schedule(args)
    on_gpu = model.pos_embed.device.type == "cuda"
    if args.compile or (args.compile is None and on_gpu):
        logger.info("the network is compiled in the first steps, which takes a minute or two")
        model.compile_blocks(sparse=on_gpu)
    state = TrainingState(
        *(model, optimizer, args, args.resume_epoch - 1, fingerprint, global_batch),
        num_images=source.num_samples,
    )
    resumed_from = _resume(args, state) if args.resume else None
    if state.step > steps:
        raise UserError(
            f"--resume: {resumed_from} was saved after {state.step} steps of an epoch, expected at "
            f"most the {steps} that an epoch has here (--batch_size, --accum_iter, processes)"
        )
    if state.epoch + 1 >= args.epochs:
        logger.warning("--epochs: all %d are done, nothing is left to train", args.epochs)
    return Training(state, source, schedule, group_size_lists, resumed_from)


def warn_of_schedule(args: argparse.Namespace) -> None:
    """Say which part of the learning rate's schedule the run ends before, if any."""
    found = "%s: found %d with --epochs %d: the learning rate "
    if args.warmup_epochs >= args.epochs:
        found += "rises to the end and never reaches its peak; expected fewer, or more --epochs"
        logger.warning(found, "--warmup_epochs", args.warmup_epochs, args.epochs)
    elif args.lr_schedule == "constant+cosine" and args.lr_decay_start_epoch >= args.epochs:
        found += "never falls; expected an earlier one, or another --lr_schedule"
        logger.warning(found, "--lr_decay_start_epoch", args.lr_decay_start_epoch, args.epochs)


def _resume(args: argparse.Namespace, state: TrainingState) -> Path | None:
    """Go on from the checkpoint in the folder of --resume, if it holds one."""
    folder = Path(args.resume)
    # Its own folder may be missing: a job's first start has the same line.
    if not folder.is_dir() and folder.resolve() != Path(args.output_dir).resolve():
        raise UserError(f"--resume: {folder} is not a folder, expected the one that holds {LAST}")
    paths = checkpoints_in(folder)
    if not paths:
        logger.warning("--resume: %s does not exist (yet): starting afresh", folder / LAST)
        return None
    path = load_newest(paths, state.restore)
    place = (state.step, state.epoch + 1)
    logger.info("resumed from %s: %d steps of epoch %d are done", path, *place)
    return path


def build_source(
    args: argparse.Namespace,
    grid: TokenGrid,
    encoder: Callable[[torch.Tensor], torch.Tensor] | None,
    cache: TokenCache | None,
    device: torch.device,
) -> batches.TokenSource:
    """Open the training data: cached tokens, or the images of `--data_path` encoded on the fly.

    Warns of classes without data, unless they come with the weights that training starts from.
    Raises a `UserError` if there is no usable image folder, or more classes than the model has.
    """
    images = list_images(args.data_path) if cache is None else None
    flag = "cached_path" if images is None else "data_path"
    classes = len((cache or images).classes)
    what = f"--{flag}: {getattr(args, flag)}"
    if classes > args.class_num:
        raise UserError(
            f"{what} holds {classes} classes, expected at most {args.class_num} (--class_num)"
        )
    if classes < args.class_num and not args.pretrained_ckpt:
        logger.warning(
            "%s holds %d classes and the model has %d: the others learn nothing, and an evaluation "
            "makes images of them, too; expected --class_num %d",
            *(what, classes, args.class_num, classes),
        )
    if images is None:
        return batches.CachedTokens(cache, device)
    loading = (args.num_workers, args.pin_mem, args.batch_size)
    return batches.EncodedImages(images, encoder, grid, device, *loading)
