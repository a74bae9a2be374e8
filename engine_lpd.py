"""The loops: one epoch of training, one evaluation, one pass of caching."""

from __future__ import annotations

import logging
import math
import time
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dataset.batches import Batch, TokenSource, epoch_batches, steps_per_epoch
from dataset.image_folder import ImageList, image_batches
from dataset.write_cache import CacheInProgress
from evaluation.evaluation import Evaluation
from evaluation.features import FeatureShare, extract_share, gather_features
from evaluation.image_sources import ImageSource
from evaluation.metrics import Scores
from evaluation.samples import SampleFolder, generate_images, kept_share, make_share
from evaluation.scoring import Scoring
from models.decoding import eval_mode
from models.lpd import LPD
from tokenizers.encoding import encode_both_ways, log_share_changed
from tokenizers.vq_model import VQModel, fingerprint
from training.checkpoint import LAST, TrainingState
from training.recipe import TrainingRecipe
from training.scalars import ScalarLog
from training.watch import RunWatch
from util import distributed, streams
from util.errors import UserError
from util.geometry import TokenGrid
from util.images import image_grid
from util.logs import logging_redirect_tqdm, progress

logger = logging.getLogger(__name__)


def train_one_epoch(
    model: nn.Module,
    state: TrainingState,
    source: TokenSource,
    recipe: TrainingRecipe,
    device: torch.device,
    scalars: ScalarLog,
    watch: RunWatch,
) -> float | None:
    """One pass over the data, or what is left of it after `state.step` steps.

    Args:
        model: LPD or its DDP wrapper, on `device`.
        state: its optimiser, whose learning rate is set per step, and where the run stands.
        source: where tokens come from.
        recipe: what a step does.
        device: where the step runs.
        scalars: gets loss, learning rate and gradient norm every `recipe.log_every` steps.
        watch: checks and saves between steps, and says when to stop.

    Returns:
        Mean loss of the epoch over all processes, nats per token; None if the run is to stop.

    Raises:
        UserError: the loss is no longer finite, or a checkpoint cannot be written.
    """
    model.train()
    epoch = state.epoch + 1
    share = recipe.batch_size * recipe.accum_iter
    steps = steps_per_epoch(source.num_samples, share, distributed.world_size())
    batches = epoch_batches(
        source,
        epoch,
        share,
        seed=recipe.seed,
        flip_prob=recipe.flip_prob,
        label_drop_prob=recipe.label_drop_prob,
        device=device,
        order=recipe.order,
        first_step=state.step,
    )
    title = f"epoch {epoch} of {recipe.schedule.epochs}"
    bar = progress(total=steps, initial=state.step, desc=title, unit="step")
    with closing(batches), bar, logging_redirect_tqdm():
        for batch in batches:
            step = epoch * steps + state.step
            lr = recipe.schedule.at(epoch + state.step / steps)
            loss, norm = _optimize(model, state.optimizer, batch, recipe, step, lr)
            state.add_step(loss)
            if step % recipe.log_every == 0:
                mean_loss = distributed.mean(loss)
                scalars.add(
                    step, {"train/loss": mean_loss, "train/lr": lr, "train/grad_norm": norm}
                )
                bar.set_postfix(loss=f"{mean_loss:.4f}", lr=f"{lr:.2e}")
            bar.update()
            watch.after_step(step, loss, norm)
            if watch.save_due and state.step < steps:  # a finished epoch is saved as such
                watch.save([LAST])
                if watch.stop_signal:
                    return None
    return distributed.mean(state.loss_sum / steps)


def settle_buckets(model: nn.Module, recipe: TrainingRecipe, device: torch.device) -> None:
    """Let DistributedDataParallel sum the gradients of the first step as those of all later ones.

    It lays them out anew after its first backward pass, in the order in which they became ready.
    From three processes on the layout decides the last bits of a sum, and the first step after a
    resume would not be the same step of a run that never stopped. So one pass, of which nothing is
    kept, comes before the first step: it changes no weights and no random stream. All processes
    call this together; for any other `model` there is nothing to do.

    Args:
        model: LPD or its wrapper, on `device`.
        recipe: what a step does.
        device: where the step runs.
    """
    # No setting of the wrapper does it: `find_unused_parameters` keeps one layout but searches the
    # graph in every step, and even a single bucket, which overlaps with nothing, is sorted anew.
    if not isinstance(model, DistributedDataParallel):
        return
    # Shapes and list of a step: a smaller batch would be compiled for itself.
    grid, images = model.module.grid, recipe.batch_size
    tokens = torch.zeros(images, grid.num_tokens, dtype=torch.int64, device=device)
    orders = torch.arange(grid.num_tokens, device=device).repeat(images, 1)
    batch = Batch(tokens, tokens[:, 0], orders, torch.zeros_like(tokens[:, 0], dtype=torch.bool))
    model.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        _backward(model, batch, recipe.group_size_lists[0], recipe)
    model.zero_grad(set_to_none=True)


def _optimize(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    recipe: TrainingRecipe,
    step: int,
    lr: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimiser step, number `step` of the run; this process's loss, the gradient's norm."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    sizes = _draw_group_sizes(recipe, step)
    # Dropout's masks too depend on the step alone: a resumed run repeats them.
    torch.manual_seed(streams.torch_seed("dropout", recipe.seed, step, distributed.rank()))
    optimizer.zero_grad(set_to_none=True)
    loss = _backward(model, batch, sizes, recipe)
    norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip or math.inf)
    optimizer.step()
    return loss, norm.full_tensor() if isinstance(norm, DTensor) else norm


def _backward(
    model: nn.Module, batch: Batch, sizes: list[int], recipe: TrainingRecipe
) -> torch.Tensor:
    """Gradients of a step, `recipe.batch_size` images at a time; their mean loss, detached."""
    parts = list(zip(*(part.split(recipe.batch_size) for part in batch), strict=True))
    total = torch.zeros((), device=batch.tokens.device)
    for number, (tokens, labels, orders, label_drop) in enumerate(parts, start=1):
        autocast = torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=recipe.bf16)
        with _exchange(model, number == len(parts)):
            with autocast:
                loss = model(tokens, labels, sizes, orders, label_drop) / len(parts)
            loss.backward()
        total += loss.detach()
    return total


def _exchange(model: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Whether the processes exchange gradients in a backward pass: once a step is enough."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    elif isinstance(model, DistributedDataParallel) and not now:
        return model.no_sync()
    return nullcontext()


def _draw_group_sizes(recipe: TrainingRecipe, step: int) -> list[int]:
    """The list of this optimiser step, the same on all processes."""
    draw = streams.uniforms("group sizes", recipe.seed, step, count=1)[0, 0]
    return recipe.group_size_lists[int(draw * len(recipe.group_size_lists))]


@torch.no_grad()
def evaluate(
    model: LPD, evaluation: Evaluation, image_folder: SampleFolder | None = None
) -> Scores | None:
    """Generate the samples of an evaluation and score them.

    Args:
        model: the bare network, on the evaluation's device.
        evaluation: what to generate and how to score it, with its reference.
        image_folder: where the images go, and where those of the same settings that are there
            already count as samples of this evaluation; None keeps no images.

    Returns:
        The scores on rank 0; None elsewhere and where nothing scores.
    """
    # No process waits for another before its share is done: let all fail if one does.
    with eval_mode(model):
        kept = distributed.fail_together(
            lambda: kept_share(evaluation, image_folder, model.grid.image_size)
        )
        there = np.concatenate(distributed.gather(kept.ids))
        if len(there):
            logger.info("%d of %d images are there already", len(there), evaluation.num_images)
        to_do = np.setdiff1d(np.arange(evaluation.num_images), there)
        made = distributed.fail_together(lambda: make_share(model, evaluation, image_folder, to_do))
    if evaluation.scoring is None:
        return None
    return _score_on_main(evaluation.scoring, [kept, made])


@torch.no_grad()
def show_samples(model: LPD, evaluation: Evaluation, most: int = 16) -> np.ndarray:
    """A few of the evaluation's samples, spread over the classes, as one image.

    The same image ids, and so the same random numbers, whenever it is called.

    Args:
        model: the bare network, on the evaluation's device.
        evaluation: what to generate.
        most: samples to show.

    Returns:
        (H, W, 3) uint8.
    """
    count = min(most, evaluation.num_images)
    image_ids = np.arange(count) * evaluation.num_images // count
    with eval_mode(model):
        images = generate_images(model, evaluation, image_ids)
    return image_grid(images, columns=math.ceil(math.sqrt(count)))


def score_images(source: ImageSource, scoring: Scoring) -> Scores | None:
    """Score images that are there.

    Args:
        source: the images.
        scoring: with its reference.

    Returns:
        The scores on rank 0; None elsewhere.

    Raises:
        UserError: on all processes, if any of them cannot read an image.
    """
    sizes = (scoring.batch_size, scoring.num_workers)
    share = distributed.fail_together(lambda: extract_share(source, scoring.extractor, *sizes))
    return _score_on_main(scoring, [share])


def _score_on_main(scoring: Scoring, shares: list[FeatureShare]) -> Scores | None:
    """Scores of all processes' features, in image-id order, on rank 0; None elsewhere."""

    def work() -> Scores | None:
        features = gather_features(shares)
        return scoring.score(features) if features is not None else None

    return distributed.fail_together(work)


def cache_latents(
    tokenizer: VQModel,
    images: ImageList,
    image_size: int,
    path: Path,
    *,
    batch_size: int,
    num_workers: int = 0,
    pin_memory: bool = False,
    skip_bad: bool = False,
    precision: str = "float32",
) -> int:
    """Write the token cache of a data set, both ways round; every process takes its share.

    Shards that an interrupted run of the same settings finished are kept. Of the others process r
    encodes the r-th, the (r + world size)-th, ... After each the processes agree that nothing went
    wrong. The content depends neither on interruptions nor on the number of processes.

    Args:
        tokenizer: in eval mode, on this process's device.
        images: the data set.
        image_size: side of the centre crop, pixels.
        path: an existing folder for the cache.
        batch_size: images encoded at a time (each twice: plain and mirrored).
        num_workers, pin_memory, skip_bad: as for `image_batches`.
        precision: as for `encode`; below float32 the share of indices it changes is logged first.

    Returns:
        The number of images in the cache.

    Raises:
        UserError: on all processes, if any of them cannot read an image or write a file, or if the
            folder holds shards of other settings. Finished shards stay.
    """
    grid = TokenGrid(image_size, tokenizer.stride, tokenizer.codebook_size)
    made_by = fingerprint(tokenizer)
    cache = CacheInProgress(path, images, grid, made_by, precision, batch_size, skip_bad)
    to_do = cache.to_do
    if cache.earlier:
        logger.info("%d of %d shards are there already", len(cache.earlier), len(cache.shards))
    mine = to_do[distributed.rank() :: distributed.world_size()]
    batches = [batch for number in mine for batch in cache.shards[number]]
    loader = image_batches(images, image_size, batches, num_workers, pin_memory, skip_bad)
    tokenizer = tokenizer.to(memory_format=torch.channels_last)  # convolutions' fast layout
    desc = f"encode (process 1 of {distributed.world_size()})"
    bar = progress(total=sum(map(len, batches)), unit="image", desc=desc)

    def encode_shard(number: int) -> None:
        tokens, labels = [], []
        for _ in cache.shards[number]:
            batch = next(loader)
            if number == 0 and len(batch.images) and not any(map(len, tokens)):
                log_share_changed(tokenizer, batch.images, precision)
            tokens.append(encode_both_ways(tokenizer, batch.images, precision).cpu().numpy())
            labels.append(batch.labels.numpy())
            bar.update(len(batch.labels))
        cache.write(number, np.concatenate(tokens), np.concatenate(labels))

    started = time.monotonic()
    try:
        with closing(loader), bar, logging_redirect_tqdm():
            for turn in range(math.ceil(len(to_do) / distributed.world_size())):
                distributed.fail_together(
                    lambda turn=turn: encode_shard(mine[turn]) if turn < len(mine) else None
                )
        total, encoded = cache.finish()
    except UserError:
        # Every process has left its last write behind: they have just agreed on the failure.
        cache.give_up()
        raise
    rate = encoded / (time.monotonic() - started)
    logger.info("encoded %d images, %.1f images/s", encoded, rate)
    return total
