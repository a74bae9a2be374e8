"""Train an LPD model, or evaluate one (--evaluate): flags -> objects -> engine."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch.nn.parallel import DistributedDataParallel

from dataset.token_cache import TokenCache, check_cache, open_cache
from engine_lpd import evaluate, score_images, settle_buckets, show_samples, train_one_epoch
from evaluation.evaluation import Evaluation, build_evaluation
from evaluation.image_sources import open_images
from evaluation.metrics import Scores
from evaluation.samples import (
    RECORD_FILE,
    SampleFolder,
    image_ids_in,
    keep_or_clear,
    sample_settings,
    write_archive,
)
from evaluation.scoring import build_scoring
from hub.published import pinned, pinned_flags, resolve_flags
from models.lpd import LPD, MODELS
from tokenizers.encoding import encode
from tokenizers.vq_model import VQModel, fingerprint, load_tokenizer
from training.checkpoint import (
    LAST,
    PREVIOUS,
    CheckpointSaver,
    TrainingState,
    checkpoints_in,
    load_newest,
    load_pretrained,
)
from training.flags import build_parser
from training.recipe import Training, build_source, build_training
from training.scalars import ScalarLog, import_wandb
from training.sharding import shard
from training.watch import RunWatch
from util import distributed, logs
from util.errors import UserError, blame, require_writable_folder, run
from util.files import write_json
from util.folder_lock import folder_lock, require_free
from util.geometry import TokenGrid
from util.run_record import record_run
from util.signals import StopSignals, exit_code, leave_marker, remove_marker

logger = logging.getLogger("lpd")

CHECKPOINTS = "checkpoint-*.pth"


@dataclass(frozen=True)
class Tokens:
    """What the run's tokens are: their tokenizer, cache and grid.

    Attributes:
        grid: image size, stride and vocabulary that tokenizer and cache agree on.
        tokenizer: None if it is neither needed nor there.
        fingerprint: of the tokenizer.
        cache: None if the run reads no cache.
    """

    grid: TokenGrid
    tokenizer: VQModel | None
    fingerprint: str | None
    cache: TokenCache | None


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    logs.setup()
    for flag in ("resume", "evaluate", "images"):
        if args.overwrite and getattr(args, flag):
            raise UserError(f"--overwrite: found with --{flag}, expected training from the start")
    if args.images is not None:
        score_samples(parser, args)
        return
    stopped_by = 0
    with ExitStack() as at_exit:
        signals = at_exit.enter_context(StopSignals())
        if args.evaluate:  # finished images are kept
            at_exit.enter_context(signals.leaving_at_once(partial(leave_evaluation, args)))
        launch = distributed.read_launch(args)
        device = distributed.resolve_device(args.device, launch)
        resolve_flags(args)
        with blame("--output_dir"):
            require_free(Path(args.output_dir), kind_of_run(args))
            before = checkpoints_before(args)
        # Everything is checked and loaded before the processes meet: bad input ends here.
        wandb = import_wandb() if args.use_wandb else None
        tokens = load_tokens(args)
        model, weights = build_model(args, tokens)
        model.to(device)
        evaluation = training = None
        if args.evaluate or args.online_eval:
            evaluation = build_evaluation(args, model, tokens.tokenizer, device)
        if not args.evaluate:
            encoder = None
            if tokens.cache is None:
                encoder = partial(encode, tokens.tokenizer.to(device))
            source = build_source(args, tokens.grid, encoder, tokens.cache, device)
            training = build_training(args, model, source, tokens.fingerprint, launch.world_size)
        require_writable_folder(args.output_dir, "--output_dir")
        require_writable_folder(args.log_dir, "--log_dir")
        distributed.start(launch, device)
        at_exit.callback(distributed.stop)
        on_main(lambda: begin(args, signals, before))
        on_main(lambda: record_run(parser, pinned_flags(args), args.output_dir))
        if evaluation is not None:
            evaluation = evaluation.with_reference()
        purge_step = None
        if training is not None and (args.resume or args.overwrite):
            purge_step = training.steps_done if args.resume else 0
        scalars = open_scalars(args, wandb, purge_step)
        at_exit.callback(scalars.close)
        if training is None:
            evaluate_checkpoint(args, model, weights, evaluation, tokens, scalars)
        else:
            if args.overwrite:  # nothing can be bad input any more
                on_main(lambda: delete_results(Path(args.output_dir)))
            stopped_by = train(args, training, evaluation, device, scalars, signals)
    if stopped_by:
        raise SystemExit(exit_code(stopped_by))


def kind_of_run(args: argparse.Namespace) -> str:
    """One run of each kind may work in a folder."""
    return "evaluation" if args.evaluate else "training"


def checkpoints_before(args: argparse.Namespace) -> dict[str, int]:
    """The checkpoints in the output folder of a training run, and when each was written, ns.

    Raises:
        UserError: the run would begin anew over them; begins with the folder, and leaves the flag
            to the caller.
    """
    folder = Path(args.output_dir)
    if args.evaluate:
        return {}
    found = {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob(CHECKPOINTS))}
    if found and not args.overwrite:
        if not (args.resume and Path(args.resume).resolve() == folder.resolve()):
            raise UserError(
                f"{folder} holds {next(iter(found))}, expected --resume {folder} to go on from it, "
                "another folder, or --overwrite"
            )
        # A run that was killed in its first save may have left the first of its two files.
        if not checkpoints_in(folder) and found.keys() != {"checkpoint-0.pth"}:
            raise UserError(
                f"{folder} holds {next(reversed(found))} and no {LAST}, expected a copy of one "
                "under that name to go on from, or another folder"
            )
    return found


def begin(args: argparse.Namespace, signals: StopSignals, before: Mapping[str, int]) -> None:
    """Take the output folder.

    Args:
        args: the run's flags.
        signals: let go of the folder before one ends the process.
        before: the `checkpoints_before` anything was loaded.
    """
    folder = Path(args.output_dir)
    signals.locks.enter_context(folder_lock(folder, kind_of_run(args)))
    if checkpoints_before(args) != before:
        raise UserError(
            f"{folder}: another run saved there while this one was loading, expected a new start"
        )
    remove_marker(folder)


def delete_results(folder: Path) -> None:
    """Delete what training has left in a folder: checkpoints, and scores that belong to them."""
    for path in [*folder.glob(CHECKPOINTS), *folder.glob("metrics-*.json")]:
        path.unlink()


def load_tokens(args: argparse.Namespace) -> Tokens:
    """Read tokenizer and token cache, as far as the run needs them, and check that they agree."""
    cache = None
    if args.use_cached and not args.evaluate:
        if not args.cached_path:
            raise UserError("--cached_path: not given, expected a token cache with --use_cached")
        cache = open_cache(args.cached_path)
    tokenizer = known = None
    if args.evaluate or args.online_eval or cache is None or Path(args.vqgan_path).exists():
        tokenizer = load_tokenizer(args.vqgan_path, args.vqgan_vocab_size)
        known = fingerprint(tokenizer)
    else:
        logger.warning(
            "--vqgan_path: %s does not exist; whether it made the cache is not checked",
            args.vqgan_path,
        )
    grid = resolve_grid(args, tokenizer, cache)
    if cache is not None:
        check_cache(cache, grid, known, args.class_num)
        known = known or cache.fingerprint
    return Tokens(grid, tokenizer, known, cache)


def resolve_grid(
    args: argparse.Namespace, tokenizer: VQModel | None, cache: TokenCache | None
) -> TokenGrid:
    """Stride and vocabulary of the tokenizer, else of the cache, else the flags' or published."""
    stride, vocab_size = args.vqgan_stride or 16, args.vqgan_vocab_size or 16384
    if cache is not None and cache.grid is not None:
        stride, vocab_size = cache.grid.stride, cache.grid.vocab_size
    if tokenizer is not None:
        stride, vocab_size = tokenizer.stride, tokenizer.codebook_size
    for flag, given, found in (
        ("--vqgan_stride", args.vqgan_stride, stride),
        ("--vqgan_vocab_size", args.vqgan_vocab_size, vocab_size),
    ):
        if given is not None and given != found:
            raise UserError(f"{flag}: found {given}, expected {found} as in the tokenizer's files")
    with blame("--img_size"):
        return TokenGrid(args.img_size, stride, vocab_size)


def build_model(args: argparse.Namespace, tokens: Tokens) -> tuple[LPD, Path | None]:
    """The network, and the file that its weights come from; None for fresh ones."""
    paths, flag = find_weights(args)
    if args.evaluate and not paths:
        raise UserError("--evaluate: no weights, expected --pretrained_ckpt or --resume")
    # The same initial weights on all processes; none at all where a file brings them.
    torch.manual_seed(args.seed)
    with torch.device("meta" if paths else "cpu"):
        model = MODELS[args.model](
            img_size=tokens.grid.image_size,
            vqgan_stride=tokens.grid.stride,
            vqgan_vocab_size=tokens.grid.vocab_size,
            class_num=args.class_num,
            label_drop_prob=args.label_drop_prob,
            attn_dropout=args.attn_dropout,
            proj_dropout=args.proj_dropout,
            grad_checkpointing=args.grad_checkpointing,
            blind_queries=args.blind_queries,
        )
    weights = None
    if paths:
        settings = (not args.evaluate, tokens.fingerprint, flag)
        weights = load_newest(paths, lambda path: load_pretrained(model, path, *settings))
    if args.evaluate and args.bf16:
        model.round_products()
    return model.requires_grad_(not args.evaluate), weights


def find_weights(args: argparse.Namespace) -> tuple[list[Path], str]:
    """Where the network's weights come from, the first that is not damaged, and the flag for it.

    An evaluation takes the folder of --resume where it holds a checkpoint. (A training run resumes
    from there later, with its optimiser.)
    """
    if args.evaluate and args.resume:
        found = checkpoints_in(Path(args.resume))
        if found or args.pretrained_ckpt is None:
            return found or [Path(args.resume) / LAST], "--resume"
    return [Path(args.pretrained_ckpt)] if args.pretrained_ckpt else [], "--pretrained_ckpt"


def train(
    args: argparse.Namespace,
    training: Training,
    evaluation: Evaluation | None,
    device: torch.device,
    scalars: ScalarLog,
    signals: StopSignals,
) -> int:
    """All epochs, with checkpoints and online evaluations.

    Returns:
        The signal that stopped the run before the end, saved; else 0.
    """
    state, source, recipe = training.state, training.source, training.recipe
    folder = Path(args.output_dir)
    state.join(device)
    model = distribute(args, state, device)
    online = partial(evaluate_online, args, training, evaluation, scalars, signals)
    # An evaluation that the run was stopped in is made up for.
    there = distributed.gather(results_file(args, state.epoch).exists())[0]
    if training.resumed_from is not None and evaluation_is_due(args, state) and not there:
        online()
    if state.epoch + 1 < args.epochs:
        settle_buckets(model, recipe, device)
    started, first = time.monotonic(), training.steps_done
    with CheckpointSaver(folder, last_is_good(folder, training.resumed_from)) as saver:
        policy, samples_of = training.policy, training.samples_of
        watch = RunWatch(state, saver, signals, scalars, source.bad_data, policy, samples_of)
        while state.epoch + 1 < args.epochs:
            loss = train_one_epoch(model, state, source, recipe, device, scalars, watch)
            if loss is None:
                break
            state.finish_epoch()
            epoch, last = state.epoch, state.epoch + 1 == args.epochs
            steps, to_do = training.steps_done, training.steps_per_epoch * args.epochs
            per_step = (time.monotonic() - started) / max(steps - first, 1)
            left = timedelta(seconds=round(per_step * (to_do - steps)))
            logger.info("epoch %d of %d: loss %.4f, %s to go", epoch, args.epochs, loss, left)
            scalars.add(steps - 1, {"epoch/loss": loss})
            evaluates = evaluation_is_due(args, state)
            kept = epoch % args.save_intermediate_freq == 0 or last
            if kept or evaluates or watch.save_due or epoch % args.save_last_freq == 0:
                # The last one last: a run that goes on from it has the other already.
                watch.save([f"checkpoint-{epoch}.pth", LAST] if kept else [LAST])
            if watch.stop_signal and not last:
                break
            if evaluates:
                saver.wait()
                online()
        saver.wait()
    if state.epoch + 1 >= args.epochs:
        return 0
    on_main(lambda: leave_training(folder, state, watch.stop_signal))
    return watch.stop_signal


def last_is_good(folder: Path, resumed_from: Path | None) -> bool:
    """Whether the `LAST` of a folder was not found damaged, so that it may become `PREVIOUS`."""
    if resumed_from is None or resumed_from.name != PREVIOUS:
        return True
    return not resumed_from.parent.samefile(folder)  # two names of a folder may look different


def distribute(
    args: argparse.Namespace, state: TrainingState, device: torch.device
) -> torch.nn.Module:
    """The network in the form that trains on this number of processes."""
    if args.fsdp:
        state.optimizer = shard(state.model, state.optimizer, device)
    elif distributed.world_size() > 1:
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(state.model, devices, gradient_as_bucket_view=True)
    return state.model


def leave_training(folder: Path, state: TrainingState, number: int) -> None:
    """Tell the launcher that signal `number` stopped training: the epoch, its steps done."""
    leave_marker(folder, number, epoch=state.epoch + 1, step=state.step)


def leave_evaluation(args: argparse.Namespace, number: int) -> None:
    """Tell the launcher that signal `number` stopped an evaluation: how many images are there."""
    folder = Path(args.output_dir)
    leave_marker(folder, number, images=len(image_ids_in(folder / "images", args.num_images)))


def evaluation_is_due(args: argparse.Namespace, state: TrainingState) -> bool:
    """Whether the run is between two epochs after one of which it evaluates."""
    due = state.epoch % args.eval_freq == 0 or state.epoch + 1 == args.epochs
    return args.online_eval and state.epoch >= 0 and state.step == 0 and due


def evaluate_online(
    args: argparse.Namespace,
    training: Training,
    evaluation: Evaluation,
    scalars: ScalarLog,
    signals: StopSignals,
) -> None:
    """The evaluation after a training epoch; a signal ends the run at once, for all is saved."""
    state = training.state
    with signals.leaving_at_once(partial(leave_training, Path(args.output_dir), state)):
        step = training.steps_done - 1
        run_evaluation(args, state.model, evaluation, scalars, state.epoch, step)


def results_file(args: argparse.Namespace, epoch: int | None) -> Path:
    """Where the scores of an evaluation go: after a training epoch, or (None) of --evaluate."""
    name = "metrics.json" if epoch is None else f"metrics-{epoch}.json"
    return Path(args.output_dir) / name


def open_scalars(
    args: argparse.Namespace, wandb: ModuleType | None, purge_step: int | None
) -> ScalarLog:
    """The run's scalar log, on rank 0."""
    if not distributed.is_main():
        return ScalarLog(None)
    options = {"project": args.wandb_project, "name": args.wandb_run_name, "config": vars(args)}
    return ScalarLog(Path(args.log_dir), wandb, options, purge_step)


def evaluate_checkpoint(
    args: argparse.Namespace,
    model: LPD,
    weights: Path,
    evaluation: Evaluation,
    tokens: Tokens,
    scalars: ScalarLog,
) -> None:
    """--evaluate: keeps the images, those of an earlier evaluation like this one included."""
    folder = Path(args.output_dir)
    settings = sample_settings(args, evaluation, model, tokens.fingerprint)
    images = SampleFolder.of(folder / "images", settings)
    on_main(lambda: keep_or_clear(images.path, folder / RECORD_FILE, settings))
    run_evaluation(args, model, evaluation, scalars, weights=weights, image_folder=images)
    if args.save_npz:
        on_main(lambda: write_archive(images, folder / "samples.npz", evaluation.num_images))


def run_evaluation(
    args: argparse.Namespace,
    model: LPD,
    evaluation: Evaluation,
    scalars: ScalarLog,
    epoch: int | None = None,
    step: int = 0,
    weights: Path | None = None,
    image_folder: SampleFolder | None = None,
) -> None:
    """Samples and scores, reported on the console, in TensorBoard and as JSON.

    TensorBoard also gets a few samples where training is evaluated, the same ids every time.

    Args:
        args: the run's flags.
        model: the bare network.
        evaluation: what to generate and how to score it.
        scalars: gets the scores.
        epoch: of the training run that this evaluation is part of; None for --evaluate.
        step: where the scores stand in TensorBoard.
        weights: for --evaluate, the file that they come from.
        image_folder: as for `evaluate`.
    """
    scores = evaluate(model, evaluation, image_folder)
    if epoch is not None and distributed.is_main():
        scalars.add_image(step, "eval/samples", show_samples(model, evaluation))
    results = {
        "model": args.model,
        "checkpoint": pinned(weights) if epoch is None else f"epoch {epoch}",
        "steps": len(evaluation.group_sizes),
        "order": args.order,
        "seed": evaluation.seed,
        **vars(evaluation.sampling),
        "num_images": evaluation.num_images,
        **({**evaluation.scoring.about(), **scores.json()} if scores is not None else {}),
    }
    if scores is not None:
        say(scores)
        scalars.add(step, {f"eval/{tag}": value for tag, value in scores.tags().items()})
    scalars.flush()
    on_main(lambda: write_json(results, results_file(args, epoch)))


def score_samples(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """--images: the scores of samples that are there, without a model, and a JSON beside them."""
    launch = distributed.read_launch(args)
    device = distributed.resolve_device(args.device, launch)
    source = open_images(args.images, "--images")
    scoring = build_scoring(args, source.image_size, len(source), device)
    if scoring is None:
        raise UserError("--images: found --feature_extractor none, expected one that scores")
    # Beside the images, unless a folder is given: theirs may not be ours to write to.
    path, given = source.path.absolute(), args.output_dir != parser.get_default("output_dir")
    folder = Path(args.output_dir) if given else path.parent
    flag = "--output_dir" if given else "--images: the scores' folder"
    results = folder / f"{path.name.removesuffix('.npz')}-metrics.json"
    if launch.rank == 0:
        require_writable_folder(folder, flag)
        with blame(flag):
            record_run(parser, args, folder)
    with ExitStack() as at_exit:
        distributed.start(launch, device)
        at_exit.callback(distributed.stop)
        scores = score_images(source, scoring.with_reference())

        def report() -> None:
            if scores is not None:
                say(scores)
                about = {"images": str(source.path), "image_size": source.image_size}
                with blame(flag):
                    write_json({**about, **scoring.about(), **scores.json()}, results)
                logger.info("scores in %s", results)

        distributed.fail_together(report)


def say(scores: Scores) -> None:
    """The scores for people."""
    for line in scores.lines():
        logger.info("%s", line)


def on_main(write: Callable[[], None]) -> None:
    """Let rank 0 write to --output_dir; all wait for it, and stop in one line if it fails."""

    def work() -> None:
        if distributed.is_main():
            with blame("--output_dir"):
                write()

    distributed.fail_together(work)


if __name__ == "__main__":
    run(main)
