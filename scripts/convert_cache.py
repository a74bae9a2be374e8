"""Turn the published per-image token files into a token cache.

python scripts/convert_cache.py --published_path ./latents --cached_path ./data/cache \
    --vqgan_path tokenizers/vq_ds16_c2i.pt
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from dataset.token_cache import PublishedCache, open_cache
from dataset.write_cache import (
    MAX_SHARD_IMAGES,
    Shard,
    remove_unfinished,
    require_new_cache,
    write_index,
    write_shard,
)
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
    parser.add_argument(
        "--published_path", default="", help="folder of <class>/<image name>.npz files"
    )
    add_flags(parser, "--cached_path", help="folder to write the cache to")
    add_flags(
        parser,
        "--vqgan_path",
        help="the tokenizer that made the tokens; the files do not say, so this is trusted",
    )
    add_flags(parser, "--num_workers", type=whole(1), help="processes that read")
    add_flags(parser, "--debug")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    logs.setup()
    if not args.cached_path:
        raise UserError("--cached_path: not given, expected the folder to write the cache to")
    path = Path(args.cached_path)
    require_new_cache(path)
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
    logger.warning(
        "--vqgan_path: taking it that %s made these tokens; checked is only that its %d codes "
        "hold them",
        args.vqgan_path,
        grid.vocab_size,
    )
    require_writable_folder(path, "--cached_path")
    remove_unfinished(path)
    with blame("--cached_path"):
        record_run(parser, pinned_flags(args), path)
    try:
        shards = convert_all(published, path, args.num_workers)
        with blame(f"--cached_path: {path}"):
            write_index(path, grid, fingerprint(tokenizer), published.classes, shards, "unknown")
    except BaseException:
        remove_unfinished(path)
        raise
    logger.info("%s is complete: %d images of %d px", path, published.num_images, side)


def convert_all(published: PublishedCache, path: Path, num_workers: int) -> list[Shard]:
    """Write all tokens as shards, in several processes."""
    count, shards = published.num_images, []
    starts = range(0, count, MAX_SHARD_IMAGES)
    parts = [published.select(np.arange(count)[start:][:MAX_SHARD_IMAGES]) for start in starts]
    with (
        ProcessPoolExecutor(min(num_workers, available_cores(), len(parts))) as pool,
        logs.progress(total=count, unit="image", desc="convert") as bar,
    ):
        try:
            for shard in pool.map(partial(convert, path), range(len(parts)), parts):
                shards.append(shard)
                bar.update(shard.count)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return shards


def convert(path: Path, number: int, part: PublishedCache) -> Shard:
    """Read all images of a part, both ways round, and write them as one shard."""
    indices = np.arange(part.num_images)
    ways = [part.read(indices, np.full(len(indices), flip)) for flip in (False, True)]
    with blame(f"--cached_path: {path}"):
        return write_shard(path, number, np.stack(ways, axis=1), part.labels, part.grid.vocab_size)


if __name__ == "__main__":
    run(main)
