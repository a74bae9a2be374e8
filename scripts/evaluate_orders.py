"""What parallel decoding costs: the exact likelihood of held-out images, by order and steps.

    python scripts/evaluate_orders.py --pretrained_ckpt output/lpd/checkpoint-last.pth \\
        --cached_path data/held_out --orders lpd random raster --steps 64 16 8 \\
        --output orders.json --plot orders.png

Teacher-forced on real images, the sum of -log p(token | earlier groups) is the negative
log-likelihood (NLL) that an order's sampler gives the image, without guidance; its price is what
of it is due to decoding in parallel. `--search` looks for the best thresholds and group sizes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.token_cache import TokenCache, open_cache
from hub.published import pinned_flags, resolve_flags
from orders.group_sizes import RULE, group_sizes, shaped_group_sizes
from orders.sources import ORDERS
from studies import report, search
from studies.likelihood import Setting, load_model, measure, read_settings
from studies.report import describe
from util import distributed, logs
from util.cli import Parser, add_flags, number, whole
from util.errors import UserError, blame, require_writable_file, run
from util.files import write_json
from util.geometry import TokenGrid
from util.run_record import record_run

# By default searched.
REPULSIONS = (0, 1, 2, 3, 4)
PROXIMITIES = (0, 1, 2, 3, search.REPULSION_ALONE)
SHAPES = (RULE, "1", "1.5", "2", "3")


def build_parser() -> Parser:
    """All flags."""
    parser = Parser(description="The price of parallel decoding, by order and number of steps.")
    group = parser.add_argument_group("model and images")
    add_flags(group, "--pretrained_ckpt", required=True)
    group.add_argument("--cached_path", required=True, help="token cache of held-out images")
    group.add_argument("--num_images", type=whole(2), help="spread evenly; by default all")
    add_flags(group, "--batch_size")
    about = f"by default {', '.join(ORDERS)}, in the steps of training; differences are taken"
    group = parser.add_argument_group("what to compare", f"{about} against the first")
    add_flags(group, "--orders", "--steps")
    about = "such as '[1]*4 + [2]*126'"
    group.add_argument("--group_sizes", nargs="+", default=[], metavar="LIST", help=about)
    about = "for the best thresholds and group sizes in each of --steps, on one half of the images,"
    group = parser.add_argument_group("search", f"{about} confirmed on the other")
    group.add_argument("--search", action="store_true", help="instead of comparing")
    about = f"by default {REPULSIONS}"
    group.add_argument("--repulsions", nargs="+", type=number(), metavar="R", help=about)
    about = f"from {search.REPULSION_ALONE:g} up nothing is near; by default {PROXIMITIES}"
    group.add_argument("--proximities", nargs="+", type=number(), metavar="P", help=about)
    about = f"of group sizes: {RULE}, or a power of the known tokens; by default {SHAPES}"
    group.add_argument("--shapes", nargs="+", metavar="SHAPE", help=about)
    group = parser.add_argument_group("run and output")
    add_flags(group, "--bf16", "--device", "--output", "--debug")
    add_flags(group, "--seed", help="of the orders")
    group.add_argument("--plot", type=Path, help="PNG file: NLL, paired differences, prices")
    distributed.add_distributed_flags(parser)
    return parser


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
    model = load_model(args.pretrained_ckpt, cache, args.bf16).to(device)
    image_ids = choose_images(args, cache)
    if args.search:
        check_sizes(args, model.grid.num_tokens)
        study = partial(look_for_best, args, model.grid)
    else:
        study = partial(compare, args, read_settings(args, model.grid, cache.num_images))
    for flag, path in (("--output", args.output), ("--plot", args.plot)):
        if path is not None:
            require_writable_file(path, flag)
    if args.plot is not None and args.plot == args.output:
        raise UserError(f"--plot: found {args.plot}, as --output, expected another file")
    about = {}
    if args.output is not None:
        with blame("--output"):
            record_run(parser, pinned_flags(args), args.output.parent)
        if launch.rank == 0:
            about = describe(args, cache, image_ids)
    costs = partial(measure, model, cache, batch_size=args.batch_size, bf16=args.bf16)
    with ExitStack() as at_exit:
        distributed.start(launch, device)
        at_exit.callback(distributed.stop)
        at_exit.enter_context(logs.logging_redirect_tqdm())
        figures = study(costs, image_ids)
        if args.output is not None and distributed.is_main():
            with blame("--output"):
                write_json({**about, **figures}, args.output)


def settle_flags(args: argparse.Namespace) -> None:
    """Set the defaults of a comparison or of a search, and refuse what it would ignore."""
    searched = {"repulsions": REPULSIONS, "proximities": PROXIMITIES, "shapes": SHAPES}
    if args.search:
        for wrong, words in (
            (args.orders is not None, "--orders, expected none: it makes its own"),
            (bool(args.group_sizes), "--group_sizes, expected --steps"),
            (args.steps is None, "no --steps, expected --steps"),
            (args.plot is not None, "--plot, expected none: there is nothing to plot"),
        ):
            if wrong:
                raise UserError(f"--search: found {words}")
    else:
        for name in searched:
            if getattr(args, name) is not None:
                raise UserError(f"--{name}: found without --search, expected both or neither")
    for name, default in searched.items() if args.search else [("orders", ORDERS)]:
        if getattr(args, name) is None:
            setattr(args, name, list(default))


def choose_images(args: argparse.Namespace, cache: TokenCache) -> np.ndarray:
    """Choose places (n,) in the cache, spread evenly because it is sorted by class."""
    number = cache.num_images if args.num_images is None else args.num_images
    if not 2 <= number <= cache.num_images:
        raise UserError(
            f"--num_images: found {number}, expected 2 to the {cache.num_images} of {cache.path}"
        )
    if args.search and number < 4:
        raise UserError(f"--search: found {number} images, expected at least 4: two halves")
    return np.arange(number) * cache.num_images // number


def check_sizes(args: argparse.Namespace, num_tokens: int) -> None:
    """Find out before the work whether there are all the sizes that a search tries."""
    with blame("--steps"):
        for steps in args.steps:
            group_sizes(num_tokens, steps)
    with blame("--shapes"):
        for steps, shape in product(args.steps, args.shapes):
            shaped_group_sizes(num_tokens, steps, shape)


def compare(
    args: argparse.Namespace, settings: Sequence[Setting], costs: search.Measure, ids: np.ndarray
) -> dict[str, Any]:
    """Measure, show and plot; return the entries of the JSON file."""
    results = costs(settings, ids)
    show(report.table(results))
    if args.plot is not None and distributed.is_main():
        with blame("--plot"):
            report.plot(results, args.plot)
    return {"results": report.entries(results)}


def look_for_best(
    args: argparse.Namespace, grid: TokenGrid, costs: search.Measure, ids: np.ndarray
) -> dict[str, Any]:
    """Search for each number of steps and show what was found; return the JSON file's entries."""
    candidates = search.all_candidates(args.repulsions, args.proximities, args.shapes)
    costs, entries = partial(costs, one_by_one=False), []
    for steps in args.steps:
        lines, entry = search.search(costs, candidates, grid, steps, args.seed, ids)
        show(lines)
        entries.append(entry)
    return {"searches": entries}


def show(lines: Sequence[str]) -> None:
    """Write lines to standard output, from rank 0."""
    if distributed.is_main():
        sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    run(main)
