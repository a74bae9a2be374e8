"""All that one training run needs, checked before it starts (method section 8)."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timm.optim import param_groups_weight_decay

from dataset.batches import (
    CachedTokens,
    EncodedImages,
    TokenSource,
    epoch_samples,
    steps_per_epoch,
)
from dataset.image_folder import list_images
from dataset.token_cache import TokenCache
from models.lpd import LPD
from orders.group_sizes import read_group_sizes_list, training_group_sizes
from orders.sources import read_group_sizes
from training.checkpoint import LAST, TrainingState
from training.lr_schedule import LRSchedule
from training.watch import SavePolicy
from util.errors import UserError, blame
from util.geometry import TokenGrid

logger = logging.getLogger(__name__)

BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class TrainingRecipe:
    """What a training step does.

    Attributes:
        batch_size: images per process at a time.
        accum_iter: how many times that an optimiser step sees.
        schedule: learning rate over fractional epochs.
        group_size_lists: one of them is drawn per optimiser step.
        grad_clip: largest gradient norm; 0 for no clipping.
        bf16: run the forward pass under bfloat16 autocast.
        flip_prob: share of visits that see the mirrored image.
        label_drop_prob: share of visits without a class.
        order: `random` or `raster`, of the positions in training.
        seed: names the random streams.
        log_every: steps between log entries.
    """

    batch_size: int
    accum_iter: int
    schedule: LRSchedule
    group_size_lists: list[list[int]]
    grad_clip: float
    bf16: bool
    flip_prob: float
    label_drop_prob: float
    seed: int
    log_every: int
    order: str = "random"


@dataclass(frozen=True)
class Training:
    """A checked training run, ready to start.

    Attributes:
        state: network, optimiser and how far they are.
        source: where tokens come from.
        recipe: what a step does.
        policy: when to save besides at the end of epochs.
        resumed_from: the checkpoint that `state` comes from; None for a fresh start.
    """

    state: TrainingState
    source: TokenSource
    recipe: TrainingRecipe
    policy: SavePolicy
    resumed_from: Path | None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return self.source.num_samples // self.state.global_batch

    @property
    def steps_done(self) -> int:
        """Optimiser steps of the whole run so far."""
        return (self.state.epoch + 1) * self.steps_per_epoch + self.state.step

    def samples_of(self, epoch: int, step: int) -> np.ndarray:
        """Places in the data of the images that a step of an epoch sees, over all processes."""
        share = self.recipe.batch_size * self.recipe.accum_iter
        return epoch_samples(self.source.num_samples, epoch, share, self.recipe.seed)[step].ravel()


def build_training(
    args: argparse.Namespace,
    model: LPD,
    source: TokenSource,
    fingerprint: str | None,
    world_size: int,
) -> Training:
    """Check the training flags, make the optimiser and resume what there is to resume.

    Args:
        args: the run's flags.
        model: on its device.
        source: where tokens come from.
        fingerprint: of the tokenizer they come from, if known.
        world_size: number of processes; the learning rate and the steps depend on it.

    Raises:
        UserError: a flag or file cannot work; the message names it.
    """
    if args.fsdp and (world_size == 1 or args.online_eval):
        found = "--online_eval" if args.online_eval else "one process"
        raise UserError(f"--fsdp: found {found}, expected training alone, on several processes")
    share = args.batch_size * args.accum_iter
    with blame("--batch_size" if args.accum_iter == 1 else "--batch_size times --accum_iter"):
        steps = steps_per_epoch(source.num_samples, share, world_size)
    global_batch = share * world_size
    lr = args.lr if args.lr is not None else args.blr * global_batch / 256
    recipe = TrainingRecipe(
        batch_size=args.batch_size,
        accum_iter=args.accum_iter,
        schedule=LRSchedule(
            args.lr_schedule,
            lr,
            args.min_lr,
            args.epochs,
            args.warmup_epochs,
            args.lr_decay_start_epoch,
        ),
        group_size_lists=_read_group_size_lists(args, model.grid),
        grad_clip=args.grad_clip,
        bf16=args.bf16,
        flip_prob=args.flip_prob,
        label_drop_prob=args.label_drop_prob,
        seed=args.seed,
        log_every=args.log_every,
        order=args.train_order,
    )
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
    _check_place(state, steps, resumed_from)
    if state.epoch + 1 >= args.epochs:
        logger.warning("--epochs: all %d are done, nothing is left to train", args.epochs)
    policy = SavePolicy(args.save_steps, args.save_minutes)
    return Training(state, source, recipe, policy, resumed_from)


def warn_of_schedule(args: argparse.Namespace) -> None:
    """Say which part of the learning rate's schedule the run ends before, if any."""
    if args.warmup_epochs >= args.epochs:
        logger.warning(
            "--warmup_epochs: found %d with --epochs %d: the learning rate rises to the end "
            "and never reaches its peak; expected fewer, or more --epochs",
            *(args.warmup_epochs, args.epochs),
        )
    elif args.lr_schedule == "constant+cosine" and args.lr_decay_start_epoch >= args.epochs:
        logger.warning(
            "--lr_decay_start_epoch: found %d with --epochs %d: the learning rate never falls;"
            " expected an earlier one, or another --lr_schedule",
            *(args.lr_decay_start_epoch, args.epochs),
        )


def _resume(args: argparse.Namespace, state: TrainingState) -> Path | None:
    """Go on from the checkpoint in the folder of --resume, if it holds one."""
    folder = Path(args.resume)
    # The run's own folder is allowed to be missing: a job's first start has the same line.
    if not folder.is_dir() and folder.resolve() != Path(args.output_dir).resolve():
        raise UserError(f"--resume: {folder} is not a folder, expected the one that holds {LAST}")
    found = state.resume(folder)
    if found is None:
        logger.warning("--resume: %s does not exist (yet): starting afresh", folder / LAST)
    else:
        logger.info(
            "resumed from %s: %d steps of epoch %d are done", found, state.step, state.epoch + 1
        )
    return found


def _check_place(state: TrainingState, steps: int, resumed_from: Path | None) -> None:
    """Refuse a place in an epoch that this run's epochs do not have."""
    if state.step > steps:
        raise UserError(
            f"--resume: {resumed_from} was saved after {state.step} steps of an epoch, expected at "
            f"most the {steps} that an epoch has here (--batch_size, --accum_iter, processes)"
        )


def build_source(
    args: argparse.Namespace,
    grid: TokenGrid,
    encoder: Callable[[torch.Tensor], torch.Tensor] | None,
    cache: TokenCache | None,
    device: torch.device,
) -> TokenSource:
    """The training data: cached tokens, or the images of `--data_path` encoded on the fly.

    Warns of classes without data, unless they come with the weights that training starts from.

    Raises:
        UserError: no usable image folder.
    """
    if cache is not None:
        _compare_classes(args, len(cache.classes), f"--cached_path: {args.cached_path}")
        return CachedTokens(cache, device)
    images = list_images(args.data_path)
    _compare_classes(args, len(images.classes), f"--data_path: {args.data_path}")
    return EncodedImages(
        images, encoder, grid, device, args.num_workers, args.pin_mem, args.batch_size
    )


def _compare_classes(args: argparse.Namespace, found: int, what: str) -> None:
    """Refuse more classes in the data than the model has, and warn of fewer."""
    if found > args.class_num:
        raise UserError(
            f"{what} holds {found} classes, expected at most {args.class_num} (--class_num)"
        )
    if found < args.class_num and not args.pretrained_ckpt:
        logger.warning(
            "%s holds %d classes and the model has %d: the others learn nothing, and an evaluation "
            "makes images of them, too; expected --class_num %d",
            *(what, found, args.class_num, found),
        )


def _read_group_size_lists(args: argparse.Namespace, grid: TokenGrid) -> list[list[int]]:
    if args.group_sizes_list is None:
        return [read_group_sizes(args, grid.num_tokens)]
    if args.group_sizes_list == "auto":
        return training_group_sizes(grid.num_tokens)
    with blame("--group_sizes_list"):
        return read_group_sizes_list(args.group_sizes_list, grid.num_tokens)
