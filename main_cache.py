"""Tokenise an image folder once, so that training reads code indices: flags -> objects -> engine.

torchrun --nproc_per_node 8 main_cache.py --data_path ./data/imagenet --cached_path ./cache
"""

import logging
import os
from pathlib import Path

from dataset.image_folder import list_images
from dataset.write_cache import count_shards, require_new_cache
from engine_lpd import cache_latents, on_main
from hub.published import pinned_flags, resolve_flags
from tokenizers.vq_model import load_tokenizer
from util import distributed
from util.cli import Parser, add_flags
from util.errors import UserError, blame, require_writable_folder, run
from util.folder_lock import folder_lock
from util.geometry import TokenGrid
from util.run_record import record_run
from util.signals import StopSignals, leave_marker, remove_marker

logger = logging.getLogger("lpd")


def build_parser() -> Parser:
    """Declare all flags: published names and defaults."""
    parser = Parser(description="Tokenise an image folder once, for training with --use_cached.")
    group = parser.add_argument_group("tokenizer")
    add_flags(group, "--vqgan_path")
    add_flags(group, "--vqgan_stride", help="pixels per token; by default the tokenizer's")
    add_flags(group, "--vqgan_vocab_size", help="number of codes; by default the tokenizer's")
    group = parser.add_argument_group("data")
    add_flags(group, "--data_path")
    add_flags(group, "--img_size", help="side of the crop, pixels")
    add_flags(group, "--cached_path", help="folder to write the cache to")
    group.add_argument(
        "--skip_bad_images", action="store_true", help="leave out images that cannot be decoded"
    )
    add_flags(group, "--num_workers", "--pin_mem", "--no_pin_mem")
    group = parser.add_argument_group("execution")
    add_flags(group, "--batch_size", default=128, help="images per process")
    add_flags(group, "--device")
    faster = group.add_mutually_exclusive_group()
    for name, means in (("tf32", "TF32 convolutions"), ("bf16", "bfloat16 autocast")):
        shown = f"encode with {means}; the share of indices that this changes is logged"
        choice = dict(action="store_const", const=name, dest="precision", default="float32")
        faster.add_argument(f"--{name}", help=shown, **choice)
    add_flags(group, "--seed", help="without effect: nothing is drawn")
    add_flags(group, "--debug")
    distributed.add_distributed_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    # An image left out is reported by the process that met it, not only by rank 0.
    logging.getLogger("dataset.image_folder").setLevel(logging.WARNING)
    if not args.cached_path:
        raise UserError("--cached_path: not given, expected the folder to write the cache to")
    path = Path(args.cached_path)
    with StopSignals() as signals:
        signals.enter_context(
            signals.leaving_at_once(lambda one: leave_marker(path, one, shards=count_shards(path)))
        )
        launch = distributed.read_launch(args)
        device = distributed.resolve_device(args, launch)
        require_new_cache(path)
        mode = os.environ.get("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT")
        if device.type == "cpu" and mode != "STRICT":  # it overrules what PyTorch is told
            logger.warning(
                "ONEDNN_DEFAULT_FPMATH_MODE=%s: convolutions may be rounded to it, so some tokens "
                "may be others than in float32; expected it not to be set",
                mode,
            )
        resolve_flags(args)
        tokenizer = load_tokenizer(args.vqgan_path, args.vqgan_vocab_size)
        if args.vqgan_stride not in (None, tokenizer.stride):
            raise UserError(
                f"--vqgan_stride: found {args.vqgan_stride}, expected {tokenizer.stride}, "
                f"the stride of {args.vqgan_path}"
            )
        with blame("--img_size"):
            TokenGrid(args.img_size, tokenizer.stride, tokenizer.codebook_size)
        images = list_images(args.data_path)
        require_writable_folder(path, "--cached_path")
        signals.enter_context(distributed.start(launch, device))

        def begin() -> None:
            signals.locks.enter_context(folder_lock(path, "cache"))
            remove_marker(path)

        on_main(begin, "--cached_path")
        # Another run may have finished it meanwhile.
        distributed.fail_together(lambda: require_new_cache(path))
        on_main(lambda: record_run(parser, pinned_flags(args), path), "--cached_path")
        logger.info("%d images in %d classes", len(images), len(images.classes))
        count = cache_latents(tokenizer.to(device), images, args)
        if count < len(images) and distributed.is_main():
            logger.warning("left out %d of %d images", len(images) - count, len(images))
        logger.info("%s is complete", path)


if __name__ == "__main__":
    run(main)
