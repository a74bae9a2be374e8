"""The loops: training, evaluation, caching."""

import logging
import math
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dataset.batches import Batch, epoch_batches, epoch_samples
from dataset.image_folder import ImageList, image_batches
from dataset.write_cache import CacheInProgress
from evaluation import samples
from evaluation.evaluation import Evaluation, Scoring
from evaluation.features import FeatureBatch, extract_share, gather_features, ids_of
from evaluation.image_sources import ImageSource
from evaluation.metrics import Scores
from hub.published import pinned
from models.decoding import eval_mode
from models.lpd import LPD
from tokenizers.encoding import encode_both_ways, log_share_changed
from tokenizers.vq_model import VQModel, fingerprint
from training.agreement import Agreement, Outcome
from training.checkpoint import LAST, PREVIOUS, CheckpointSaver, TrainingState
from training.recipe import Training
from training.scalars import ScalarLog
from training.sharding import shard
from util import distributed, streams
from util.errors import UserError, blame
from util.files import write_json
from util.geometry import TokenGrid
from util.images import image_grid
from util.logs import logging_redirect_tqdm, progress
from util.signals import StopSignals, leave_marker

logger = logging.getLogger(__name__)

# Steps that a device may be behind the host: enough for a GPU never to run dry.
STEPS_LATE = {"cuda": 4, "cpu": 0}


def train(
    run: Training,
    evaluation: Evaluation | None,
    device: torch.device,
    scalars: ScalarLog,
    signals: StopSignals,
) -> int:
    """Train to the last epoch, with checkpoints and, where there is one, online evaluations.

    Returns the signal that stopped the run, saved, before its end; else 0. Raises a `UserError` on
    all processes if a loss or gradient is not finite, if any could not read its data, or if a
    checkpoint or a scalar could not be written.
    """
    state, source, args = run.state, run.source, run.state.args
    folder, steps, resumed = Path(args.output_dir), run.steps_per_epoch, run.resumed_from
    state.join(device)
    model = distribute(state, device, args.fsdp)
    evaluate_online = partial(_evaluate_online, run, evaluation, scalars, signals)
    draws = dict(seed=args.seed, flip_prob=args.flip_prob, label_drop_prob=args.label_drop_prob)
    draws |= dict(order=args.train_order, device=device)
    # An evaluation that the run was stopped in is made up for.
    there = distributed.gather(results_file(args, state.epoch).exists())[0]
    if resumed is not None and evaluation_is_due(state) and not there:
        evaluate_online()
    if state.epoch + 1 < args.epochs:
        settle_buckets(model, run, device)
    started, first_step = time.monotonic(), run.steps_done
    agreement, save_due, stop_signal = Agreement(), False, 0
    # A `LAST` that was found damaged does not become `PREVIOUS`. (If it was that of another folder,
    # there is none in this one.)
    last_is_good = resumed is None or resumed.name != PREVIOUS

    with CheckpointSaver(folder, last_is_good) as saver:

        def save(*names: str) -> None:
            scalars.flush()  # on the disk before the checkpoint that goes on after them
            scalars.check()
            # Weights, optimiser, place in the epoch and flags; no random state, see util/streams.
            saver.save(state.content(), names)

        while state.epoch + 1 < args.epochs:
            epoch, last = state.epoch + 1, state.epoch + 2 == args.epochs
            model.train()
            batches = epoch_batches(source, epoch, run.share, **draws, first_step=state.step)
            title = f"epoch {epoch} of {args.epochs}"
            bar = progress(total=steps, initial=state.step, desc=title, unit="step")
            with closing(batches), bar, logging_redirect_tqdm():
                for batch in batches:
                    step = run.steps_done
                    lr = run.schedule.at(epoch + state.step / steps)
                    loss, norm = optimize(model, batch, run, lr)
                    state.step += 1
                    state.loss_sum += loss
                    bar.update()
                    if step == first_step and device.type == "cuda":
                        saver.reserve(state.content())  # memory that is slow to get

                    # The one exchange of a step: what any process met, all know.
                    save_now = 0 < args.save_minutes <= saver.minutes_ago()
                    failed = saver.failed or scalars.failed or source.bad_data.error is not None
                    met = Outcome(step, lr, loss, norm, save_now, failed, signals.received)
                    agreement.tell(met)
                    epoch_ends = state.step == steps
                    save_due |= args.save_steps > 0 and (step + 1) % args.save_steps == 0
                    # Read late on a GPU, for the host not to wait for steps that it has queued; but
                    # all before a checkpoint, for it to hold no step that went wrong.
                    late = STEPS_LATE[device.type]
                    while len(agreement) > (0 if save_due or epoch_ends else late):
                        done = agreement.read()
                        if done.step % args.log_every == 0:
                            rates = {"train/lr": done.lr, "train/grad_norm": done.norm}
                            scalars.add(done.step, {"train/loss": done.loss, **rates})
                            bar.set_postfix(loss=f"{done.loss:.4f}", lr=f"{done.lr:.2e}")
                        if not math.isfinite(done.loss) or not math.isfinite(done.norm):
                            raise UserError(_describe_bad_step(run, done))
                        if done.failed:
                            saver.wait()
                            scalars.check()
                            source.bad_data.check()
                        stop_signal = stop_signal or done.signal
                        save_due |= done.save or stop_signal > 0

                    if save_due and not epoch_ends:  # a finished epoch is saved as such
                        save(LAST)
                        save_due = False
                        if stop_signal:
                            break
            if state.step < steps:
                break

            loss = (distributed.total(state.loss_sum / steps) / distributed.world_size()).item()
            state.epoch, state.step = epoch, 0
            state.loss_sum.zero_()
            per_step = (time.monotonic() - started) / max(run.steps_done - first_step, 1)
            time_left = timedelta(seconds=round(per_step * (steps * args.epochs - run.steps_done)))
            logger.info("epoch %d of %d: loss %.4f, %s to go", epoch, args.epochs, loss, time_left)
            scalars.add(run.steps_done - 1, {"epoch/loss": loss})
            evaluates = evaluation_is_due(state)
            kept = epoch % args.save_intermediate_freq == 0 or last
            if kept or evaluates or save_due or epoch % args.save_last_freq == 0:
                # LAST comes second: a run that goes on from it has the other already.
                save(*([f"checkpoint-{epoch}.pth", LAST] if kept else [LAST]))
                save_due = False
            if stop_signal and not last:
                break
            if evaluates:
                saver.wait()
                evaluate_online()
        saver.wait()

    if state.epoch + 1 >= args.epochs:
        return 0
    place = {"epoch": state.epoch + 1, "step": state.step}
    on_main(partial(leave_marker, folder, stop_signal, **place))
    return stop_signal


def _describe_bad_step(run: Training, done: Outcome) -> str:
    epoch, step = divmod(done.step, run.steps_per_epoch)
    drawn = epoch_samples(run.source.num_samples, epoch, run.share, run.state.args.seed)
    seen = list(map(str, drawn[step].ravel()))
    images = ", ".join(seen[:8]) + (f" and {len(seen) - 8} more" if len(seen) > 8 else "")
    return (
        f"training: the loss is {done.loss:g} and the gradient norm {done.norm:g} in epoch "
        f"{epoch}, step {step} (images {images}), expected finite numbers (a lower learning rate "
        "may help); checkpoints are of earlier steps"
    )


def distribute(state: TrainingState, device: torch.device, fsdp: bool) -> nn.Module:
    """Wrap the network for this number of processes, or shard it and its optimiser."""
    if fsdp:
        shard(state.model, state.optimizer, device)
    elif distributed.world_size() > 1:
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(state.model, devices, gradient_as_bucket_view=True)
    return state.model


def optimize(model: nn.Module, batch: Batch, run: Training, lr: float) -> tuple[Tensor, Tensor]:
    """Make the next optimiser step of a run, of LPD or its wrapper.

    Returns this process's loss and the norm of the gradient before clipping, scalars on its device.
    """
    args, optimizer, step = run.state.args, run.state.optimizer, run.steps_done
    for group in optimizer.param_groups:
        group["lr"] = lr
    # Seeded in every step, so a resumed run repeats the masks.
    torch.manual_seed(streams.torch_seed("dropout", args.seed, step, distributed.rank()))
    optimizer.zero_grad(set_to_none=True)
    loss = _backward(model, batch, draw_group_sizes(run, step), args)
    norm = nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip or math.inf)
    optimizer.step()
    return loss, norm.full_tensor() if isinstance(norm, DTensor) else norm


def draw_group_sizes(run: Training, step: int) -> list[int]:
    """Draw the list of an optimiser step, the same on all processes."""
    draw = streams.uniforms("group sizes", run.state.args.seed, step, count=1)[0, 0]
    return run.group_size_lists[int(draw * len(run.group_size_lists))]


def _backward(model: nn.Module, batch: Batch, sizes: list[int], args: Namespace) -> Tensor:
    """Add up the gradients of micro-batches of `--batch_size` images; their mean loss, detached."""
    parts = list(zip(*(part.split(args.batch_size) for part in batch), strict=True))
    total = torch.zeros((), device=batch.tokens.device)
    for number, (tokens, labels, orders, label_drop) in enumerate(parts, start=1):
        autocast = torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=args.bf16)
        last = number == len(parts)  # only there processes sum their gradients
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
        alone = isinstance(model, DistributedDataParallel) and not last
        with model.no_sync() if alone else nullcontext():
            with autocast:
                loss = model(tokens, labels, sizes, orders, label_drop) / len(parts)
            loss.backward()
        total += loss.detach()
    return total


def settle_buckets(model: nn.Module, run: Training, device: torch.device) -> None:
    """Make a backward pass without a trace, so that the first step sums gradients as later ones.

    DistributedDataParallel lays its buckets out anew after its first backward pass. From three
    processes on the layout decides the last bits of a sum, as a resumed run's first step would
    show. No setting of the wrapper helps: `find_unused_parameters` searches the graph every step.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    # Shapes and list of a step: a smaller batch would be compiled for itself.
    num_tokens, images = model.module.grid.num_tokens, run.state.args.batch_size
    tokens = torch.zeros(images, num_tokens, dtype=torch.int64, device=device)
    orders = torch.arange(num_tokens, device=device).repeat(images, 1)
    batch = Batch(tokens, tokens[:, 0], orders, torch.zeros_like(tokens[:, 0], dtype=torch.bool))
    model.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        _backward(model, batch, run.group_size_lists[0], run.state.args)
    model.zero_grad(set_to_none=True)


def evaluation_is_due(state: TrainingState) -> bool:
    """Whether the run is between two epochs after one of which it evaluates."""
    args, epoch = state.args, state.epoch
    due = epoch % args.eval_freq == 0 or epoch + 1 == args.epochs
    return args.online_eval and epoch >= 0 and state.step == 0 and due


def _evaluate_online(
    run: Training, evaluation: Evaluation, scalars: ScalarLog, signals: StopSignals
) -> None:
    """Evaluate after an epoch; a signal ends the run at once, for all is saved."""
    state, step, folder = run.state, run.steps_done - 1, Path(run.state.args.output_dir)
    last_words = partial(leave_marker, folder, epoch=state.epoch + 1, step=0)
    with signals.leaving_at_once(last_words):
        scores = evaluate(state.model, evaluation)
        if distributed.is_main():  # a few samples, the same ones each time
            count = min(16, evaluation.num_images)
            image_ids = np.arange(count) * evaluation.num_images // count
            with torch.no_grad(), eval_mode(state.model):
                images = samples.generate_images(state.model, evaluation, image_ids)
            grid = image_grid(images, columns=math.ceil(math.sqrt(count)))
            scalars.add_image(step, "eval/samples", grid)
        report(state.args, f"epoch {state.epoch}", evaluation, scores, scalars, state.epoch, step)


def evaluate_checkpoint(
    args: Namespace,
    model: LPD,
    weights: Path,
    evaluation: Evaluation,
    fingerprint: str | None,
    scalars: ScalarLog,
) -> None:
    """Evaluate the weights of a file; keep the images, those of an earlier such run included."""
    folder = Path(args.output_dir)
    settings = samples.sample_settings(args, evaluation, model, fingerprint)
    images = samples.SampleFolder.of(folder / "images", settings)
    on_main(lambda: samples.keep_or_clear(images.path, folder / samples.RECORD_FILE, settings))
    scores = evaluate(model, evaluation, images)
    report(args, pinned(weights), evaluation, scores, scalars)
    if args.save_npz:
        on_main(lambda: images.write_archive(folder / "samples.npz", evaluation.num_images))
    logger.info("%d images in %s", evaluation.num_images, images.path)


def report(
    args: Namespace,
    checkpoint: str,
    evaluation: Evaluation,
    scores: Scores | None,
    scalars: ScalarLog,
    epoch: int | None = None,
    step: int = 0,
) -> None:
    """Write the results of an evaluation to TensorBoard at `step` and as JSON."""
    results = {
        "model": args.model,
        "checkpoint": checkpoint,
        "steps": len(evaluation.group_sizes),
        "order": args.order,
        "seed": evaluation.seed,
        **vars(evaluation.sampling),
        "num_images": evaluation.num_images,
    }
    if scores is not None:
        results |= {**evaluation.scoring.about(), **scores.json()}
        scalars.add(step, {f"eval/{tag}": value for tag, value in scores.tags().items()})
    scalars.flush()
    on_main(lambda: write_json(results, results_file(args, epoch)))


def results_file(args: Namespace, epoch: int | None) -> Path:
    """Where the scores of an evaluation go: after a training epoch, or (None) of --evaluate."""
    return Path(args.output_dir, "metrics.json" if epoch is None else f"metrics-{epoch}.json")


def on_main(write: Callable[[], None], flag: str = "--output_dir") -> None:
    """Let rank 0 write where `flag` says; all wait for it, and stop in one line if it fails."""

    def work() -> None:
        if distributed.is_main():
            with blame(flag):
                write()

    distributed.fail_together(work)


@torch.no_grad()
def evaluate(
    model: LPD, evaluation: Evaluation, image_folder: samples.SampleFolder | None = None
) -> Scores | None:
    """Generate the samples of an evaluation and score them, on rank 0, if anything does.

    Images go to the folder, if there is one: those that are there already count.
    """
    # No process waits for another before its share is done: let all fail if one does.
    with eval_mode(model):
        kept = distributed.fail_together(lambda: samples.kept_share(evaluation, image_folder))
        there = np.concatenate(distributed.gather(ids_of(kept)))
        if len(there):
            logger.info("%d of %d images are there already", len(there), evaluation.num_images)
        to_do = np.setdiff1d(np.arange(evaluation.num_images), there)
        made = distributed.fail_together(
            lambda: samples.make_share(model, evaluation, image_folder, to_do)
        )
    if evaluation.scoring is None:
        return None
    return _score_on_main(evaluation.scoring, kept + made)


def score_images(source: ImageSource, scoring: Scoring) -> Scores | None:
    """Score images that are there, on rank 0 (None elsewhere); all raise if any cannot be read."""

    def work() -> list[FeatureBatch]:
        share = extract_share(source, scoring.extractor, scoring.batch_size, scoring.num_workers)
        return [(ids, features.cpu()) for ids, features in share]

    return _score_on_main(scoring, distributed.fail_together(work))


def _score_on_main(scoring: Scoring, batches: list[FeatureBatch]) -> Scores | None:
    """Score all processes' features, in image-id order, on rank 0, aloud; None elsewhere."""

    def work() -> Scores | None:
        features = gather_features(batches)
        if features is None:
            return None
        scores = scoring.score(features)
        for line in scores.lines():
            logger.info("%s", line)
        return scores

    return distributed.fail_together(work)


def cache_latents(tokenizer: VQModel, images: ImageList, args: Namespace) -> int:
    """Write the token cache of a data set, both ways round; return the number of its images.

    Shards that an interrupted run of the same settings finished are kept, the others shared out.
    After each the processes agree that nothing went wrong, or all raise a `UserError`. The content
    depends neither on interruptions nor on the number of processes.
    """
    grid = TokenGrid(args.img_size, tokenizer.stride, tokenizer.codebook_size)
    skip_bad, precision, processes = args.skip_bad_images, args.precision, distributed.world_size()
    settings = (grid, fingerprint(tokenizer), precision, args.batch_size, skip_bad)
    cache = CacheInProgress(Path(args.cached_path), images, *settings)
    if cache.earlier:
        logger.info("%d of %d shards are there already", len(cache.earlier), len(cache.shards))
    mine = cache.to_do[distributed.rank() :: processes]
    batches = [batch for number in mine for batch in cache.shards[number]]
    loader = image_batches(images, args.img_size, batches, args.num_workers, args.pin_mem, skip_bad)
    tokenizer = tokenizer.to(memory_format=torch.channels_last)  # convolutions' fast layout
    desc = f"encode (process 1 of {processes})"
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
            for turn in range(math.ceil(len(cache.to_do) / processes)):
                mine_now = mine[turn : turn + 1]  # in the last turn some have none
                distributed.fail_together(lambda now=mine_now: list(map(encode_shard, now)))
        total, encoded = cache.finish()
    except UserError:
        # Every process has left its last write behind: they have just agreed on the failure.
        cache.give_up()
        raise
    rate = encoded / (time.monotonic() - started)
    logger.info("encoded %d images, %.1f images/s", encoded, rate)
    return total
