"""Train an LPD model, or evaluate one (--evaluate): flags -> objects -> engine."""

import logging
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

import torch

from dataset.token_cache import TokenCache, check_cache, open_cache
from engine_lpd import evaluate_checkpoint, on_main, score_images, train
from evaluation.evaluation import build_evaluation, build_scoring
from evaluation.image_sources import open_images
from evaluation.samples import image_ids_in
from hub.published import pinned_flags, resolve_flags
from models.lpd import LPD, MODELS
from tokenizers.encoding import encode
from tokenizers.vq_model import VQModel, fingerprint, load_tokenizer
from training.checkpoint import LAST, checkpoints_in, load_newest, load_pretrained
from training.flags import build_parser
from training.recipe import build_source, build_training
from training.scalars import ScalarLog, import_wandb
from util import distributed
from util.errors import UserError, blame, require_writable_folder, run
from util.files import write_json
from util.folder_lock import folder_lock, require_free
from util.geometry import TokenGrid
from util.run_record import record_run
from util.signals import StopSignals, leave_marker, remove_marker

logger = logging.getLogger("lpd")

CHECKPOINTS = "checkpoint-*.pth"


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    for flag in ("resume", "evaluate", "images"):
        if args.overwrite and getattr(args, flag):
            raise UserError(f"--overwrite: found with --{flag}, expected training from the start")
    if args.images is not None:
        score_samples(parser, args)
        return
    stopped_by = 0
    with StopSignals() as signals:
        if args.evaluate:  # finished images are kept
            signals.enter_context(signals.leaving_at_once(partial(leave_evaluation, args)))
        launch = distributed.read_launch(args)
        device = distributed.resolve_device(args, launch)
        resolve_flags(args)
        with blame("--output_dir"):
            kind = "evaluation" if args.evaluate else "training"
            require_free(Path(args.output_dir), kind)
            before = checkpoints_before(args)
        # Everything is checked and loaded before the processes meet: bad input ends here.
        wandb = import_wandb() if args.use_wandb else None
        grid, tokenizer, known, cache = load_tokens(args)
        model, weights = build_model(args, grid, known)
        model.to(device)
        evaluation = training = None
        if args.evaluate or args.online_eval:
            evaluation = build_evaluation(args, model, tokenizer, device)
        if not args.evaluate:
            encoder = partial(encode, tokenizer.to(device)) if cache is None else None
            source = build_source(args, grid, encoder, cache, device)
            training = build_training(args, model, source, known, launch.world_size)
        require_writable_folder(args.output_dir, "--output_dir")
        require_writable_folder(args.log_dir, "--log_dir")
        signals.enter_context(distributed.start(launch, device))
        on_main(lambda: begin(args, kind, signals, before))
        on_main(lambda: record_run(parser, pinned_flags(args), args.output_dir))
        if evaluation is not None:
            evaluation = evaluation.with_reference()
        about = {"project": args.wandb_project, "name": args.wandb_run_name, "config": vars(args)}
        purge = 0 if args.overwrite else None  # what an earlier run logged from there on is dropped
        if training is not None and args.resume:
            purge = training.steps_done
        folder = Path(args.log_dir) if distributed.is_main() else None
        scalars = ScalarLog(folder, wandb, about, purge)
        signals.callback(scalars.close)
        if training is None:
            evaluate_checkpoint(args, model, weights, evaluation, known, scalars)
        else:
            if args.overwrite:  # nothing can be bad input any more
                on_main(lambda: delete_results(Path(args.output_dir)))
            stopped_by = train(training, evaluation, device, scalars, signals)
    if stopped_by:
        raise SystemExit(128 + stopped_by)  # as a shell reports it


def checkpoints_before(args: Namespace) -> dict[str, int]:
    """List the checkpoints in a training run's output folder, and when each was written, ns.

    Raises a `UserError`, without a flag's name, if the run would begin anew over them.
    """
    folder = Path(args.output_dir)
    if args.evaluate:
        return {}
    files = {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob(CHECKPOINTS))}
    if files and not args.overwrite:
        if not (args.resume and Path(args.resume).resolve() == folder.resolve()):
            raise UserError(
                f"{folder} holds {next(iter(files))}, expected --resume {folder} to go on from it, "
                "another folder, or --overwrite"
            )
        # A run that was killed in its first save may have left the first of its two files.
        if not checkpoints_in(folder) and files.keys() != {"checkpoint-0.pth"}:
            raise UserError(
                f"{folder} holds {next(reversed(files))} and no {LAST}, expected a copy of one "
                "under that name to go on from, or another folder"
            )
    return files


def delete_results(folder: Path) -> None:
    """Delete the checkpoints that training has left in a folder, and the scores of them."""
    for path in [*folder.glob(CHECKPOINTS), *folder.glob("metrics-*.json")]:
        path.unlink()


def begin(args: Namespace, kind: str, signals: StopSignals, before: dict[str, int]) -> None:
    """Take the output folder, unless it has other checkpoints than `before` loading."""
    folder = Path(args.output_dir)
    # Let go of before a signal ends the process.
    signals.locks.enter_context(folder_lock(folder, kind))
    if checkpoints_before(args) != before:
        raise UserError(
            f"{folder}: another run saved there while this one was loading, expected a new start"
        )
    remove_marker(folder)


def load_tokens(
    args: Namespace,
) -> tuple[TokenGrid, VQModel | None, str | None, TokenCache | None]:
    """Read tokenizer and token cache, as far as the run needs them, and check that they agree.

    Returns the grid, the tokenizer, the fingerprint of what makes or made the tokens, the cache.
    """
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
    # Stride and codes of the tokenizer, else of the cache, else the flags or the release.
    stride, vocab_size = args.vqgan_stride or 16, args.vqgan_vocab_size or 16384
    if cache is not None and cache.grid is not None:
        stride, vocab_size = cache.grid.stride, cache.grid.vocab_size
    if tokenizer is not None:
        stride, vocab_size = tokenizer.stride, tokenizer.codebook_size
    for name, own in (("vqgan_stride", stride), ("vqgan_vocab_size", vocab_size)):
        given = getattr(args, name)
        if given is not None and given != own:
            raise UserError(f"--{name}: found {given}, expected {own} as in the tokenizer's files")
    with blame("--img_size"):
        grid = TokenGrid(args.img_size, stride, vocab_size)
    if cache is not None:
        check_cache(cache, grid, known, args.class_num)
        known = known or cache.fingerprint
    return grid, tokenizer, known, cache


def build_model(args: Namespace, grid: TokenGrid, known: str | None) -> tuple[LPD, Path | None]:
    """Make the network, of tokens of a `known` tokenizer, and return the file of its weights."""
    paths, flag = [Path(args.pretrained_ckpt)] if args.pretrained_ckpt else [], "--pretrained_ckpt"
    # A training run resumes later, with its optimiser.
    if args.evaluate and args.resume:
        saved = checkpoints_in(Path(args.resume))
        if saved or not paths:
            paths, flag = saved or [Path(args.resume) / LAST], "--resume"
    if args.evaluate and not paths:
        raise UserError("--evaluate: no weights, expected --pretrained_ckpt or --resume")
    as_the_flags_are = ("class_num", "label_drop_prob", "attn_dropout", "proj_dropout")
    as_the_flags_are += ("grad_checkpointing", "blind_queries")
    # The same initial weights on all processes; none at all where a file brings them.
    torch.manual_seed(args.seed)
    with torch.device("meta" if paths else "cpu"):
        model = MODELS[args.model](
            img_size=grid.image_size,
            vqgan_stride=grid.stride,
            vqgan_vocab_size=grid.vocab_size,
            **{name: getattr(args, name) for name in as_the_flags_are},
        )
    weights = None
    if paths:
        settings = (not args.evaluate, known, flag)
        weights = load_newest(paths, lambda path: load_pretrained(model, path, *settings))
    if args.evaluate and args.bf16:
        model.round_products()
    return model.requires_grad_(not args.evaluate), weights


def leave_evaluation(args: Namespace, number: int) -> None:
    """Tell the launcher that signal `number` stopped an evaluation: how many images are there."""
    folder = Path(args.output_dir)
    leave_marker(folder, number, images=len(image_ids_in(folder / "images", args.num_images)))


def score_samples(parser: ArgumentParser, args: Namespace) -> None:
    """Score the samples of --images, without a model; the JSON goes beside them."""
    launch = distributed.read_launch(args)
    device = distributed.resolve_device(args, launch)
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
    with distributed.start(launch, device):
        scores = score_images(source, scoring.with_reference())
        about = {"images": str(source.path), "image_size": source.image_size}
        if scores is not None:
            about |= {**scoring.about(), **scores.json()}
        on_main(lambda: write_json(about, results), flag)
        logger.info("scores in %s", results)


if __name__ == "__main__":
    run(main)
