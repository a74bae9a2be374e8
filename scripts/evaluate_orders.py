"""What parallel decoding costs: the exact likelihood of held-out images, by order and steps.

    python scripts/evaluate_orders.py --pretrained_ckpt output/lpd/checkpoint-last.pth \\
        --cached_path data/held_out --orders lpd random raster --steps 64 16 8 \\
        --output orders.json --plot orders.png

Teacher-forced on real images, the sum of -log p(token | earlier groups) is the negative
log-likelihood (NLL) that an order's sampler gives the image, without guidance. Decoding a group in
parallel puts a product in the place of its joint distribution; the price of that is what the NLL
rises by against the same order one token at a time. `--search` looks for the best thresholds and
group sizes instead.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.token_cache import TokenCache, check_cache, open_cache
from hub import published
from hub.download import sha256_of
from hub.published import pinned, pinned_flags, resolve_flags
from hub.weights import read_weights
from models.lpd import LPD
from orders.group_sizes import (
    RULE,
    group_sizes,
    parse_group_sizes,
    shaped_group_sizes,
    training_group_sizes,
)
from orders.order_file import warn_of_steps
from orders.sources import ORDERS, parse_order
from studies import report as order_report
from studies import search as order_search
from studies.likelihood import Setting, images_digest, measure
from studies.plot import plot
from util import distributed, logs
from util.cli import Parser, add_flags, number, whole
from util.errors import UserError, blame, require_writable_folder, run
from util.files import write_json
from util.geometry import TokenGrid
from util.run_record import record_run, revision, versions

logger = logging.getLogger(__name__)

# By default searched.
REPULSIONS = (0, 1, 2, 3, 4)
PROXIMITIES = (0, 1, 2, 3, order_search.REPULSION_ALONE)
SHAPES = (RULE, "1", "1.5", "2", "3")


def build_parser() -> Parser:
    """All flags."""
    parser = Parser(description="The price of parallel decoding, by order and number of steps.")
    group = parser.add_argument_group("model and images")
    add_flags(group, "--pretrained_ckpt", required=True)
    group.add_argument("--cached_path", required=True, help="token cache of held-out images")
    group.add_argument("--num_images", type=whole(2), help="spread evenly; by default all")
    add_flags(group, "--batch_size")
    group = parser.add_argument_group("what to compare")
    group.add_argument(
        "--orders",
        nargs="+",
        metavar="ORDER",
        help="random, raster, lpd (published repulsion), lpd:R, lpd:R:P (repulsion R, proximity P) "
        "or an order file or its published name; differences are taken against the first; by "
        f"default {_words(ORDERS)}",
    )
    group.add_argument(
        "--steps",
        nargs="+",
        type=whole(1),
        metavar="K",
        help="decoding steps; by default those of training, unless --group_sizes is given",
    )
    group.add_argument(
        "--group_sizes", nargs="+", default=[], metavar="LIST", help="such as '[1]*4 + [2]*126'"
    )
    group = parser.add_argument_group("search")
    group.add_argument(
        "--search",
        action="store_true",
        help="choose thresholds and group sizes for each of --steps on one half of the images, and "
        "measure the choice on the other",
    )
    group.add_argument(
        "--repulsions",
        nargs="+",
        type=number(),
        metavar="R",
        help=f"thresholds; by default {_words(REPULSIONS)}",
    )
    group.add_argument(
        "--proximities",
        nargs="+",
        type=number(),
        metavar="P",
        help=f"thresholds; from {order_search.REPULSION_ALONE:g} up nothing is near enough, and "
        f"repulsion decides alone; by default {_words(PROXIMITIES)}",
    )
    group.add_argument(
        "--shapes",
        nargs="+",
        metavar="SHAPE",
        help="of group sizes: the rule's, or the power with which the known tokens grow; by "
        f"default {_words(SHAPES)}",
    )
    group = parser.add_argument_group("run and output")
    add_flags(group, "--bf16", "--device")
    add_flags(group, "--seed", help="of the orders")
    add_flags(group, "--output")
    group.add_argument("--plot", type=Path, help="PNG file: NLL, paired differences, prices")
    add_flags(group, "--debug")
    distributed.add_distributed_flags(parser)
    return parser


def _words(values: Sequence[float | str]) -> str:
    return " ".join(value if isinstance(value, str) else f"{value:g}" for value in values)


def main(argv: Sequence[str] | None = None) -> None:
    """Check and load everything, measure, report."""
    parser = build_parser()
    args = parser.parse_args(argv)
    settle_flags(args)
    logs.setup()
    launch = distributed.read_launch(args)
    device = distributed.resolve_device(args.device, launch)
    resolve_flags(args)
    cache = open_cache(args.cached_path)
    model = load_model(args, cache).to(device)
    image_ids = choose_images(args, cache)
    settings = [] if args.search else read_settings(args, model.grid, cache)
    if args.search:
        check_search(args, model.grid, len(image_ids))
    check_output(args)
    if args.output is not None:
        with blame("--output"):
            record_run(parser, pinned_flags(args), args.output.parent)
    about = {}
    if args.output is not None and launch.rank == 0:
        about = describe(args, model.grid, cache, image_ids)
    with ExitStack() as at_exit:
        distributed.start(launch, device)
        at_exit.callback(distributed.stop)
        with logs.logging_redirect_tqdm():
            if args.search:
                found = search(args, model, cache, image_ids)
            else:
                found = compare(args, model, cache, image_ids, settings)
        if args.output is not None and distributed.is_main():
            with blame("--output"):
                write_json({**about, **found}, args.output)


def settle_flags(args: argparse.Namespace) -> None:
    """Set the defaults of a comparison or of a search, and refuse what it would ignore."""
    searched = {"repulsions": REPULSIONS, "proximities": PROXIMITIES, "shapes": SHAPES}
    if args.search:
        if args.orders is not None:
            raise UserError("--search: found --orders, expected none: it makes its own")
        if args.steps is None or args.group_sizes:
            found = "--group_sizes" if args.group_sizes else "no --steps"
            raise UserError(f"--search: found {found}, expected --steps")
        if args.plot is not None:
            raise UserError("--search: found --plot, expected none: there is nothing to plot")
    else:
        for name in searched:
            if getattr(args, name) is not None:
                raise UserError(f"--{name}: found without --search, expected both or neither")
    for name, default in searched.items() if args.search else [("orders", ORDERS)]:
        if getattr(args, name) is None:
            setattr(args, name, list(default))


def describe(
    args: argparse.Namespace, grid: TokenGrid, cache: TokenCache, image_ids: np.ndarray
) -> dict[str, Any]:
    """What makes the figures what they are; the first entries of the JSON file."""
    checkpoint = Path(args.pretrained_ckpt)
    with blame("--pretrained_ckpt"):
        content = sha256_of(checkpoint)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "code": revision(),
        "versions": versions(),
        "checkpoint": pinned(checkpoint),
        "checkpoint_sha256": content,
        "cache": str(cache.path),
        "images_sha256": images_digest(cache, image_ids),
        "num_images": len(image_ids),
        "class_by_image": str([cache.classes[label] for label in cache.labels[image_ids]]),
        "num_tokens": grid.num_tokens,
        "seed": args.seed,
        "bf16": args.bf16,
    }


def load_model(args: argparse.Namespace, cache: TokenCache) -> LPD:
    """The checkpoint's network, for the cache's grid, in eval mode."""
    weights = read_weights(Path(args.pretrained_ckpt), "--pretrained_ckpt")
    config = {}
    if cache.grid is not None:
        config = {"img_size": cache.grid.image_size, "vqgan_stride": cache.grid.stride}
    model = LPD.from_weights(weights, f"--pretrained_ckpt: {args.pretrained_ckpt}", config)
    check_cache(cache, model.grid, model.tokenizer_fingerprint, model.class_num)
    if args.bf16:
        model.round_products()
    return model.requires_grad_(False)


def choose_images(args: argparse.Namespace, cache: TokenCache) -> np.ndarray:
    """Places in the cache, (n,), spread evenly because a cache is sorted by class."""
    number = cache.num_images if args.num_images is None else args.num_images
    if not 2 <= number <= cache.num_images:
        raise UserError(
            f"--num_images: found {number}, expected 2 to the {cache.num_images} of {cache.path}"
        )
    return np.arange(number) * cache.num_images // number


def read_settings(args: argparse.Namespace, grid: TokenGrid, cache: TokenCache) -> list[Setting]:
    """Every order with every number of steps and list of sizes, orders of one list together."""
    with blame("--orders"):
        paths = [published.resolve(text, published.ORDERS) for text in args.orders]
        sources = [parse_order(path, grid, args.seed, cache.num_images) for path in paths]
    steps = args.steps
    if steps is None:
        trained = training_group_sizes(grid.num_tokens)
        steps = [] if args.group_sizes else [len(sizes) for sizes in trained]
    with blame("--steps"):
        lists = [(group_sizes(grid.num_tokens, count), "") for count in steps]
    with blame("--group_sizes"):
        for text in args.group_sizes:
            sizes = parse_group_sizes(text, grid.num_tokens)
            earlier = sum(len(other) == len(sizes) and bool(name) for other, name in lists)
            lists.append((sizes, f"as listed, {earlier + 1}" if earlier else "as listed"))
    for text in args.orders:
        warn_of_steps(text, [len(sizes) for sizes, _ in lists], "--orders", "--steps")
    return [
        Setting(order, source, tuple(sizes), name)
        for sizes, name in lists
        for order, source in zip(args.orders, sources, strict=True)
    ]


def check_search(args: argparse.Namespace, grid: TokenGrid, num_images: int) -> None:
    """What would otherwise fail after the processes have met."""
    if num_images < 4:
        raise UserError(f"--search: found {num_images} images, expected at least 4: two halves")
    for steps in args.steps:
        with blame("--steps"):
            group_sizes(grid.num_tokens, steps)
        with blame("--shapes"):
            for shape in args.shapes:
                shaped_group_sizes(grid.num_tokens, steps, shape)


def check_output(args: argparse.Namespace) -> None:
    """Find out before the work whether the files can be written."""
    for flag, path in (("--output", args.output), ("--plot", args.plot)):
        if path is not None:
            if path.is_dir():
                raise UserError(f"{flag}: {path} is a folder, expected a file")
            require_writable_folder(path.parent, flag)
    if args.plot is not None and args.plot == args.output:
        raise UserError(f"--plot: found {args.plot}, as --output, expected another file")


def compare(
    args: argparse.Namespace,
    model: LPD,
    cache: TokenCache,
    image_ids: np.ndarray,
    settings: Sequence[Setting],
) -> dict[str, Any]:
    """Measure, show and plot; the entries of the JSON file."""
    results = measure(model, cache, settings, image_ids, batch_size=args.batch_size, bf16=args.bf16)
    show(order_report.table(results))
    if args.plot is not None and distributed.is_main():
        with blame("--plot"):
            plot(results, args.plot)
    return {"results": order_report.entries(results)}


def search(
    args: argparse.Namespace, model: LPD, cache: TokenCache, image_ids: np.ndarray
) -> dict[str, Any]:
    """Search for each number of steps and show what was found; the entries of the JSON file."""
    candidates = order_search.all_candidates(args.repulsions, args.proximities, args.shapes)
    costs = partial(
        measure, model, cache, batch_size=args.batch_size, bf16=args.bf16, one_by_one=False
    )
    found = []
    for steps in args.steps:
        outcome = order_search.search(costs, candidates, model.grid, steps, args.seed, image_ids)
        command = order_search.order_file_command(outcome, model.grid, args.seed)
        show([*order_search.table(outcome), f"its order file: {command}"])
        found.append(order_search.entry(outcome, command))
    return {"searches": found}


def show(lines: Sequence[str]) -> None:
    """Lines for people on standard output, from rank 0."""
    if distributed.is_main():
        sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    run(main)
