"""The loops: one epoch of training, one evaluation, one pass of caching."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from models.decoding import eval_mode, generate
from models.lpd import LPD
from tokenizers.vq_model import VQModel, fingerprint
from util import distributed, streams
from util.cache_writer import Shard, plan_shards, remove_unfinished, write_index, write_shard
from util.encoding import encode_both_ways, log_share_changed
from util.errors import UserError, blame, is_out_of_memory
from util.evaluation import Evaluation
from util.features import Features, extract
from util.geometry import TokenGrid
from util.host_copy import HostCopy
from util.image_folder import ImageList, image_batches
from util.logs import logging_redirect_tqdm, progress
from util.memory import largest_that_fits
from util.metrics import Scores, score
from util.png_writers import PngWriters
from util.scalars import ScalarLog
from util.training import TrainingRecipe
from util.training_data import Batch, TokenSource, epoch_batches, steps_per_epoch

logger = logging.getLogger(__name__)


def train_one_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    source: TokenSource,
    recipe: TrainingRecipe,
    epoch: int,
    device: torch.device,
    scalars: ScalarLog,
) -> float:
    """One pass over the data.

    Args:
        model: LPD or its DDP wrapper, on `device`.
        optimizer: its optimiser; the learning rate is set per step.
        source: where tokens come from.
        recipe: what a step does.
        epoch: whole number from 0.
        device: where the step runs.
        scalars: gets loss, learning rate and gradient norm every `recipe.log_every` steps.

    Returns:
        Mean loss of the epoch over all processes, nats per token.

    Raises:
        UserError: the loss is no longer finite.
    """
    model.train()
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
    )
    total = torch.zeros((), device=device)
    bar = progress(
        batches, total=steps, desc=f"epoch {epoch} of {recipe.schedule.epochs}", unit="step"
    )
    for step_in_epoch, batch in enumerate(bar):
        step = epoch * steps + step_in_epoch
        lr = recipe.schedule.at(epoch + step_in_epoch / steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        sizes = _draw_group_sizes(recipe, step)
        # Dropout's masks too depend on the step alone: a resumed run repeats them.
        torch.manual_seed(streams.torch_seed("dropout", recipe.seed, step, distributed.rank()))
        optimizer.zero_grad(set_to_none=True)
        loss = _backward(model, batch, sizes, recipe)
        norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip or math.inf)
        optimizer.step()
        total += loss
        if step % recipe.log_every == 0:
            loss_now = distributed.mean(loss)
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            _require_finite(loss_now, epoch, step_in_epoch)
            scalars.add(step, {"train/loss": loss_now, "train/lr": lr, "train/grad_norm": norm})
            bar.set_postfix(loss=f"{loss_now:.4f}", lr=f"{lr:.2e}")
    mean_loss = distributed.mean(total / steps)
    _require_finite(mean_loss, epoch, steps - 1)
    return mean_loss


def _backward(
    model: nn.Module, batch: Batch, sizes: list[int], recipe: TrainingRecipe
) -> torch.Tensor:
    """Gradients of a step, `recipe.batch_size` images at a time; their mean loss, detached."""
    parts = list(zip(*(part.split(recipe.batch_size) for part in batch), strict=True))
    total = torch.zeros((), device=batch.tokens.device)
    for number, (tokens, labels, orders, label_drop) in enumerate(parts, start=1):
        with (
            _exchange(model, number == len(parts)),
            torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=recipe.bf16),
        ):
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


def _require_finite(loss: float, epoch: int, step_in_epoch: int) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"training: the loss is {loss} in epoch {epoch}, step {step_in_epoch}, expected a "
            "finite number (a smaller --blr may help)"
        )


@torch.no_grad()
def evaluate(model: LPD, evaluation: Evaluation, image_folder: Path | None = None) -> Scores | None:
    """Generate the samples of an evaluation and score them.

    Args:
        model: the bare network, on the evaluation's device.
        evaluation: what to generate and how to score it.
        image_folder: where `{image id:05d}.png` go; None keeps no images.

    Returns:
        The scores on rank 0; None elsewhere and where nothing scores.
    """
    # No process waits for another before its share is done: let all fail if one does.
    with eval_mode(model):
        ids, features = distributed.fail_together(
            lambda: _evaluate_share(model, evaluation, image_folder)
        )
    if evaluation.extractor is None:
        return None
    # Rank 0 scores the features of all, in image-id order.
    gathered = distributed.gather_to_main((ids, features))
    return distributed.fail_together(lambda: _score_on_main(evaluation, gathered))


def _score_on_main(
    evaluation: Evaluation, gathered: list[tuple[np.ndarray, Features | None]] | None
) -> Scores | None:
    """Scores of all processes' features, in image-id order; None where nothing was gathered."""
    if gathered is None:
        return None
    parts = [part for part in gathered if part[1] is not None]
    by_id = np.argsort(np.concatenate([part_ids for part_ids, _ in parts]))
    features = Features.join([part for _, part in parts]).select(torch.from_numpy(by_id))
    with blame("--feature_extractor"):
        return score(features, evaluation.extractor.kind, evaluation.reference)


def _evaluate_share(
    model: LPD, evaluation: Evaluation, image_folder: Path | None
) -> tuple[np.ndarray, Features | None]:
    """This process's image ids, and their features if something scores them."""
    batches = list(_image_id_batches(evaluation))
    features: list[Features] = []
    total = sum(map(len, batches))
    with (
        PngWriters(image_folder) as writers,
        progress(total=total, desc="evaluate", unit="image") as bar,
    ):

        def settle(image_ids: np.ndarray, samples: HostCopy) -> None:
            images, *found = samples.wait()
            writers.write(images.numpy(), image_ids)
            if found:
                # Page-locked memory is for the way only.
                features.append(Features(*(values.clone() for values in found)))
            bar.update(len(image_ids))

        # While a GPU makes one batch, the host handles the one before.
        waiting: deque[tuple[np.ndarray, HostCopy]] = deque()
        for image_ids in batches:
            waiting.append((image_ids, _start_batch(model, evaluation, image_ids)))
            if len(waiting) > 1:
                settle(*waiting.popleft())
        for batch in waiting:
            settle(*batch)
    ids = np.concatenate([np.empty(0, dtype=np.int64), *batches])
    return ids, Features.join(features) if features else None


def _start_batch(model: LPD, evaluation: Evaluation, image_ids: np.ndarray) -> HostCopy:
    """Images and, if something scores them, their features, on their way to the host.

    Raises:
        UserError: the batch does not fit into the device's memory; the message says what does.
    """

    def start(ids: np.ndarray) -> HostCopy:
        images = _generate_images(model, evaluation, ids)
        if evaluation.extractor is None:
            return HostCopy(images)
        found = extract(evaluation.extractor, images)
        return HostCopy(images, found.pool, found.logits)

    try:
        return start(image_ids)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Only out of that block is the failed attempt's memory free.
    size = len(image_ids)

    def attempt(smaller: int) -> None:
        model.fast_path.graphs.clear()  # whose memory would count against this attempt
        start(image_ids[:smaller]).wait()

    fits = largest_that_fits(attempt, size)
    raise UserError(
        f"--eval_bsz: {size} images at a time do not fit into the memory of "
        f"{model.pos_embed.device}, "
        + (f"expected at most {fits}" if fits else "and neither does a single one")
    )


def _image_id_batches(evaluation: Evaluation) -> Iterator[np.ndarray]:
    """This process's image ids: every world-size-th batch of `range(num_images)`."""
    size = evaluation.batch_size
    first, stride = distributed.rank() * size, distributed.world_size() * size
    for start in range(first, evaluation.num_images, stride):
        yield np.arange(start, min(start + size, evaluation.num_images))


def _generate_images(model: LPD, evaluation: Evaluation, image_ids: np.ndarray) -> torch.Tensor:
    """(B,) image ids -> (B, S, S, 3) uint8 on the device."""
    device = model.pos_embed.device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=evaluation.bf16):
        tokens = generate(
            model,
            evaluation.labels(image_ids),
            evaluation.orders(image_ids),
            evaluation.group_sizes,
            **vars(evaluation.sampling),
            seed=evaluation.seed,
            image_ids=image_ids,
            sampler=evaluation.sampler,
        )
    return evaluation.decode(tokens)


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

    Process r encodes shards r, r + world size, ... After each the processes agree that nothing
    went wrong. The content does not depend on how many there are.

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
        UserError: on all processes, if any of them cannot read an image or write a file. No shard
            is left behind.
    """
    grid = TokenGrid(image_size, tokenizer.stride, tokenizer.codebook_size)
    tokenizer = tokenizer.to(memory_format=torch.channels_last)  # convolutions' fast layout
    shards = plan_shards(len(images), batch_size, distributed.world_size())
    mine = range(distributed.rank(), len(shards), distributed.world_size())
    batches = [batch for number in mine for batch in shards[number]]
    loader = image_batches(images, image_size, batches, num_workers, pin_memory, skip_bad)
    written: list[tuple[Shard, np.ndarray]] = []
    desc = f"encode (process 1 of {distributed.world_size()})"
    bar = progress(total=sum(map(len, batches)), unit="image", desc=desc)

    def encode_shard(number: int) -> None:
        tokens, labels = [], []
        for _ in shards[number]:
            batch = next(loader)
            if number == 0 and not tokens:
                log_share_changed(tokenizer, batch.images, precision)
            tokens.append(encode_both_ways(tokenizer, batch.images, precision).cpu().numpy())
            labels.append(batch.labels.numpy())
            bar.update(len(batch.labels))
        with blame(f"--cached_path: {path}"):
            shard = write_shard(path, number, np.concatenate(tokens), grid.vocab_size)
        written.append((shard, np.concatenate(labels)))

    started = time.monotonic()
    try:
        with closing(loader), bar, logging_redirect_tqdm():
            for first in range(0, len(shards), distributed.world_size()):
                number = first + distributed.rank()
                distributed.fail_together(
                    lambda n=number: encode_shard(n) if n < len(shards) else None
                )
        gathered = chain.from_iterable(distributed.gather(written))
        parts = sorted(gathered, key=lambda part: part[0].number)
        distributed.fail_together(
            lambda: _finish_cache(path, grid, tokenizer, images.classes, parts, precision)
        )
    except UserError:
        # Every process has left its last write behind: they have just agreed on the failure.
        if distributed.is_main():
            remove_unfinished(path)
        raise
    count = sum(shard.count for shard, _ in parts)
    seconds = time.monotonic() - started
    logger.info("encoded %d images, %.1f images/s", count, count / seconds)
    return count


def _finish_cache(
    path: Path,
    grid: TokenGrid,
    tokenizer: VQModel,
    classes: Sequence[str],
    parts: Sequence[tuple[Shard, np.ndarray]],
    precision: str,
) -> None:
    """Turn the shards and labels of all processes into the cache, on rank 0."""
    if not sum(shard.count for shard, _ in parts):
        raise UserError("none of the images can be decoded, expected at least one")
    if distributed.is_main():
        shards, labels = zip(*parts, strict=True)
        made_by = fingerprint(tokenizer)
        with blame(f"--cached_path: {path}"):
            write_index(path, grid, made_by, classes, np.concatenate(labels), shards, precision)
