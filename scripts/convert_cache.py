"""Turn the published per-image token files into a token cache.

python scripts/convert_cache.py --published_path ./latents --cached_path ./data/cache \
    --vqgan_path tokenizers/vq_ds16_c2i.pt
"""

import logging
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from dataset import write_cache
from dataset.token_cache import PublishedCache, open_cache
from hub.published import pinned_flags, resolve_flags
from tokenizers.vq_model import fingerprint, load_tokenizer
from util import logs
from util.cli import Parser, add_flags, available_cores, whole
from util.errors import UserError, blame, require_writable_folder, run
from util.geometry import TokenGrid, grid_side
from util.run_record import record_run

logger = logging.getLogger("lpd")


def build_parser() -> Parser:
    parser = Parser(description="Turn published per-image token files into a token cache.")
    shown = "folder of <class>/<image name>.npz files"
    parser.add_argument("--published_path", default="", help=shown)
    add_flags(parser, "--cached_path", help="folder to write the cache to")
    shown = "the tokenizer that made the tokens; the files do not say, so this is trusted"
    add_flags(parser, "--vqgan_path", help=shown)
    add_flags(parser, "--num_workers", type=whole(1), help="processes that read")
    add_flags(parser, "--debug")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if not args.cached_path:
        raise UserError("--cached_path: not given, expected the folder to write the cache to")
    path = Path(args.cached_path)
    write_cache.require_new_cache(path)
    resolve_flags(args)
    tokenizer = load_tokenizer(args.vqgan_path)
    published = open_cache(args.published_path, "--published_path")
    if not isinstance(published, PublishedCache):
        raise UserError(
            f"--published_path: {args.published_path} is a token cache already, expected a folder "
            "of <class>/<image name>.npz"
        )
    side = grid_side(published.num_tokens) * tokenizer.stride
    # With a grid the reader refuses indices beyond its vocabulary.
    published.grid = grid = TokenGrid(side, tokenizer.stride, tokenizer.codebook_size)
    trusted = "%s is taken to have made these tokens; only that its %d codes hold them is checked"
    logger.warning(f"--vqgan_path: {trusted}", args.vqgan_path, grid.vocab_size)
    require_writable_folder(path, "--cached_path")
    write_cache.remove_unfinished(path)
    with blame("--cached_path"):
        record_run(parser, pinned_flags(args), path)
    images, counts = np.arange(published.num_images), []
    parts = np.split(images, images[:: write_cache.MAX_SHARD_IMAGES][1:])
    workers = min(args.num_workers, available_cores(), len(parts))
    try:
        with (
            ProcessPoolExecutor(workers) as pool,
            logs.progress(total=len(images), unit="image", desc="convert") as bar,
        ):
            for count in pool.map(partial(convert, path), enumerate(map(published.select, parts))):
                counts.append(count)
                bar.update(count)
        about = (grid, fingerprint(tokenizer), published.classes, counts, "unknown")
        with blame(f"--cached_path: {path}"):
            write_cache.write_index(path, *about)
    except BaseException:
        write_cache.remove_unfinished(path)
        raise
    logger.info("%s is complete: %d images of %d px", path, published.num_images, side)


def convert(path: Path, shard: tuple[int, PublishedCache]) -> int:
    """Read all images of a shard, both ways round, and write it; return their number."""
    number, part = shard
    ways = [part.read(range(part.num_images), [flip] * part.num_images) for flip in (False, True)]
    tokens = np.stack(ways, axis=1)
    with blame(f"--cached_path: {path}"):
        return write_cache.write_shard(path, number, tokens, part.labels, part.grid.vocab_size)


if __name__ == "__main__":
    run(main)
