"""Train an LPD model, or evaluate one (--evaluate): flags -> objects -> engine."""

from __future__ import annotations

import argparse
import logging
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import torch
from torch.nn.parallel import DistributedDataParallel

from engine_lpd import evaluate, train_one_epoch
from models.lpd import LPD, MODELS
from tokenizers.vq_model import VQModel, fingerprint, load_tokenizer
from util import distributed, logs
from util.checkpoint import LAST, load_pretrained
from util.checkpoint_io import atomic_save
from util.errors import UserError, blame, require_writable_folder, run
from util.evaluation import Evaluation, build_evaluation
from util.files import write_json
from util.flags import build_parser
from util.geometry import TokenGrid
from util.images import open_rgb, write_npz_archive
from util.scalars import ScalarLog, import_wandb
from util.sharding import shard
from util.token_cache import TokenCache, check_cache, open_cache
from util.training import Training, build_source, build_training

logger = logging.getLogger("lpd")


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
    args = build_parser().parse_args(argv)
    logs.setup()
    launch = distributed.read_launch(args)
    device = distributed.resolve_device(args.device, launch)
    # Everything is checked and loaded before the processes meet: bad input ends here.
    wandb = import_wandb() if args.use_wandb else None
    tokens = load_tokens(args)
    model = build_model(args, tokens).to(device)
    evaluation = training = None
    if args.evaluate or args.online_eval:
        evaluation = build_evaluation(args, tokens.grid, tokens.tokenizer, device)
    if not args.evaluate:
        source = build_source(args, tokens.tokenizer, tokens.cache, device)
        training = build_training(args, model, source, tokens.fingerprint, launch.world_size)
    require_writable_folder(args.output_dir, "--output_dir")
    require_writable_folder(args.log_dir, "--log_dir")
    with ExitStack() as at_exit:
        distributed.start(launch, device)
        at_exit.callback(distributed.stop)
        scalars = open_scalars(args, wandb)
        at_exit.callback(scalars.close)
        if training is None:
            run_evaluation(args, model, evaluation, scalars)
        else:
            train(args, training, evaluation, device, scalars)


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


def build_model(args: argparse.Namespace, tokens: Tokens) -> LPD:
    """The network, with fresh weights or those of --pretrained_ckpt, or --resume to evaluate."""
    path, flag = find_weights(args)
    if args.evaluate and path is None:
        raise UserError("--evaluate: no weights, expected --pretrained_ckpt or --resume")
    # The same initial weights on all processes; none at all where a file brings them.
    torch.manual_seed(args.seed)
    with torch.device("cpu" if path is None else "meta"):
        model = MODELS[args.model](
            img_size=tokens.grid.image_size,
            vqgan_stride=tokens.grid.stride,
            vqgan_vocab_size=tokens.grid.vocab_size,
            class_num=args.class_num,
            label_drop_prob=args.label_drop_prob,
            attn_dropout=args.attn_dropout,
            proj_dropout=args.proj_dropout,
            grad_checkpointing=args.grad_checkpointing,
        )
    if path is not None:
        load_pretrained(model, path, not args.evaluate, tokens.fingerprint, flag)
    if args.evaluate and args.bf16:
        model.round_products()
    return model.requires_grad_(not args.evaluate)


def find_weights(args: argparse.Namespace) -> tuple[str | Path | None, str]:
    """The file that the network's weights come from, if any, and the flag that names it.

    An evaluation takes the folder of --resume where it holds a checkpoint. (A training run resumes
    from there later, with its optimiser.)
    """
    if args.evaluate and args.resume:
        last = Path(args.resume) / LAST
        if last.exists() or args.pretrained_ckpt is None:
            return last, "--resume"
    return args.pretrained_ckpt, "--pretrained_ckpt"


def train(
    args: argparse.Namespace,
    training: Training,
    evaluation: Evaluation | None,
    device: torch.device,
    scalars: ScalarLog,
) -> None:
    """All epochs, with checkpoints and online evaluations."""
    state, source, recipe = training.state, training.source, training.recipe
    folder = Path(args.output_dir)
    model = state.model
    if args.fsdp:
        state.optimizer = shard(model, state.optimizer, device)
    elif distributed.world_size() > 1:
        model = DistributedDataParallel(model, [device] if device.type == "cuda" else None)
    started = time.monotonic()
    for epoch in range(training.first_epoch, args.epochs):
        loss = train_one_epoch(model, state.optimizer, source, recipe, epoch, device, scalars)
        state.epoch = epoch
        done, to_do = epoch + 1 - training.first_epoch, args.epochs - epoch - 1
        left = timedelta(seconds=round((time.monotonic() - started) / done * to_do))
        logger.info("epoch %d of %d: loss %.4f, %s to go", epoch, args.epochs, loss, left)
        scalars.add(epoch, {"epoch/loss": loss})
        last = epoch + 1 == args.epochs
        names = [LAST] if epoch % args.save_last_freq == 0 or last else []
        if epoch % args.save_intermediate_freq == 0 or last:
            names.append(f"checkpoint-{epoch}.pth")
        content = state.content() if names else {}
        for name in names:
            on_main(lambda name=name, content=content: atomic_save(content, folder / name))
        if evaluation is not None and (epoch % args.eval_freq == 0 or last):
            run_evaluation(args, state.model, evaluation, scalars, epoch)


def open_scalars(args: argparse.Namespace, wandb: ModuleType | None) -> ScalarLog:
    """The run's scalar log, on rank 0."""
    if not distributed.is_main():
        return ScalarLog(None)
    options = {"project": args.wandb_project, "name": args.wandb_run_name, "config": vars(args)}
    return ScalarLog(Path(args.log_dir), wandb, options)


def run_evaluation(
    args: argparse.Namespace,
    model: LPD,
    evaluation: Evaluation,
    scalars: ScalarLog,
    epoch: int | None = None,
) -> None:
    """Samples and scores, reported on the console, in TensorBoard and as JSON.

    Args:
        args: the run's flags.
        model: the bare network.
        evaluation: what to generate and how to score it.
        scalars: gets the scores.
        epoch: of the training run that this evaluation is part of; None for --evaluate, which
            also keeps the images.
    """
    folder = Path(args.output_dir)
    images = None
    if epoch is None:
        images = folder / "images"
        on_main(lambda: clear_samples(images))
    scores = evaluate(model, evaluation, images)
    if images is not None and args.save_npz:
        on_main(lambda: write_archive(images, folder / "samples.npz", evaluation.num_images))
    results = {
        "model": args.model,
        "checkpoint": str(find_weights(args)[0]) if epoch is None else f"epoch {epoch}",
        "steps": len(evaluation.group_sizes),
        "order": args.order,
        "seed": evaluation.seed,
        **vars(evaluation.sampling),
        "num_images": evaluation.num_images,
        **(scores.json() if scores is not None else {}),
    }
    name = "metrics.json" if epoch is None else f"metrics-{epoch}.json"
    on_main(lambda: write_json(results, folder / name))
    if scores is not None:
        for line in scores.lines():
            logger.info("%s", line)
        scalars.add(epoch or 0, {f"eval/{key}": value for key, value in scores.json().items()})


def on_main(write: Callable[[], None]) -> None:
    """Let rank 0 write to --output_dir; all wait for it, and stop in one line if it fails."""

    def work() -> None:
        if distributed.is_main():
            with blame("--output_dir"):
                write()

    distributed.fail_together(work)


def clear_samples(folder: Path) -> None:
    """Make the folder; samples of an earlier, larger evaluation must not stay among the new."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if re.fullmatch(r"\d{5,}\.png", path.name):
            path.unlink()


def write_archive(images: Path, path: Path, count: int) -> None:
    """All samples in one ADM-style archive, by image id."""
    samples = (open_rgb(images / f"{image_id:05d}.png") for image_id in range(count))
    write_npz_archive(path, samples, count)


if __name__ == "__main__":
    run(main)
