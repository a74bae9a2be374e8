"""What parallel decoding costs: the exact likelihood of held-out images, by order and steps.

    python scripts/evaluate_orders.py --pretrained_ckpt output/lpd/checkpoint-last.pth \\
        --cached_path data/held_out --orders lpd random raster --steps 64 16 8 \\
        --output orders.json --plot orders.png

Teacher-forced on real images, the sum of -log p(token | earlier groups) is the negative
log-likelihood (NLL) that an order's sampler gives the image, without guidance; its price is what
of it is due to decoding in parallel. `--search` looks for the best thresholds and group sizes.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.token_cache import open_cache
from hub.published import pinned_flags, resolve_flags
from orders.group_sizes import RULE
from orders.sources import ORDERS
from studies import report, search
from studies.likelihood import load_model, measure, read_settings
from studies.report import describe
from util import distributed, logs
from util.cli import Parser, add_flags, number, whole
from util.errors import UserError, blame, require_writable_file, run
from util.files import replacing, write_json
from util.run_record import record_run


def build_parser() -> Parser:
    """All flags."""
    parser = Parser(description="The price of parallel decoding, by order and number of steps.")
    group = parser.add_argument_group("model and images")
    add_flags(group, "--pretrained_ckpt", required=True)
    add_flags(group, "--cached_path", required=True, help="token cache of held-out images")
    group.add_argument("--num_images", type=whole(2), help="spread evenly; by default all")
    add_flags(group, "--batch_size", "--bf16", "--device")
    about = "by default in the steps of training; differences are taken against the first order"
    group = parser.add_argument_group("what to compare", about)
    add_flags(group, "--orders", default=list(ORDERS))
    add_flags(group, "--steps")
    group.add_argument("--group_sizes", nargs="+", metavar="LIST", help="'[1]*4 + [2]*126' ...")
    about = "for the best thresholds and group sizes in each of --steps, on one half of the images,"
    group = parser.add_argument_group("search", f"{about} confirmed on the other")
    group.add_argument("--search", action="store_true", help="instead of comparing")
    for name, about, kind, default in (
        ("--repulsions", "thresholds", number(), [0, 1, 2, 3, 4]),
        ("--proximities", "thresholds; from 7 up nothing is near", number(), [0, 1, 2, 3, 7]),
        ("--shapes", f"{RULE} or powers of the known tokens", str, [RULE, "1", "1.5", "2", "3"]),
    ):
        group.add_argument(name, nargs="+", type=kind, default=default, help=about)
    group = parser.add_argument_group("run and output")
    add_flags(group, "--seed", help="of the orders")
    group.add_argument("--plot", type=Path, help="PNG file: NLL, paired differences, prices")
    add_flags(group, "--output", "--debug")
    distributed.add_distributed_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Check and load everything, measure, report."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.search and args.steps is None:
        raise UserError("--search: found no --steps, expected --steps")
    ignored, found = ("repulsions", "proximities", "shapes"), "without --search, expected both"
    if args.search:
        ignored, found = ("orders", "group_sizes", "plot"), "with --search, expected one"
    for name in ignored:
        if getattr(args, name) != parser.get_default(name):
            raise UserError(f"--{name}: found {found} or neither")
    launch = distributed.read_launch(args)
    device = distributed.resolve_device(args, launch)
    resolve_flags(args)
    cache = open_cache(args.cached_path)
    model = load_model(args.pretrained_ckpt, cache, args.bf16).to(device)
    count = cache.num_images if args.num_images is None else args.num_images
    least = 4 if args.search else 2  # two in each half
    if not least <= count <= cache.num_images:
        most = f"the {cache.num_images} of {cache.path}"
        raise UserError(f"--num_images: found {count}, expected {least} to {most}")
    # Spread evenly, because the cache is sorted by class.
    image_ids = np.arange(count) * cache.num_images // count
    if args.search:
        with blame("--steps, --shapes"):
            plans = [search.plans(args, model.grid, steps) for steps in args.steps]
    else:
        plans = read_settings(args, model.grid, cache.num_images)
    for flag, path, *suffixes in (("--output", args.output), ("--plot", args.plot, ".png")):
        if path is not None:
            require_writable_file(path, flag, *suffixes)
    if args.plot is not None and args.plot == args.output:
        raise UserError(f"--plot: found {args.plot}, as --output, expected another file")
    about = {}
    if args.output is not None:
        with blame("--output"):
            record_run(parser, pinned_flags(args), args.output.parent)
        if launch.rank == 0:
            about = describe(args, cache, image_ids)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)
    with distributed.start(launch, device), logs.logging_redirect_tqdm(), autocast:
        costs = partial(measure, model, cache, batch_size=args.batch_size)
        if args.search:
            costs, about_all = partial(costs, one_by_one=False), (model.grid, args.seed, image_ids)
            searches = [search.search(costs, plan, *about_all) for plan in plans]
            lines = report.markdown(list(search.search_table(searches)))
            lines += [f"its order file: {each['best']['order_file_command']}" for each in searches]
            figures = {"searches": searches}
        else:
            results = costs(plans, image_ids)
            lines, figures = report.table(results), {"results": report.entries(results)}
        if not distributed.is_main():
            return
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        if args.output is not None:
            with blame("--output"):
                write_json({**about, **figures}, args.output)
        if args.plot is not None:
            with blame("--plot"), replacing(args.plot) as temporary:
                report.draw(results).savefig(temporary, format="png", dpi=100)


if __name__ == "__main__":
    run(main)
