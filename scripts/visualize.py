"""Pictures of orders, of generations, of samples and of training runs.

    python scripts/visualize.py order --lpd_order_file res256_steps20_repulsion2 \\
        --output_dir output/pictures
    python scripts/visualize.py generation --pretrained_ckpt lpd_l_256 --vqgan_path llamagen \\
        --generation_steps 20 --cfg 4.8 --classes 207 980 --output output/steps.gif output/steps.png
    python scripts/visualize.py samples --pretrained_ckpt lpd_l_256 --vqgan_path llamagen \\
        --generation_steps 20 --cfg 4.8 --class_names imagenet.json --output output/samples.png
    python scripts/visualize.py training --log_dir output/lpd --output output/training.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.networks import build_decoder, read_networks
from hub import published
from models.decoding import generate, generate_steps
from models.lpd import LPD
from models.sampling import read_sampling
from orders.order_file import read_orders, steps_in_name, warn_of_steps
from orders.sources import ORDERS, build_orders, parse_order, read_group_sizes, stored
from tokenizers.vq_model import VQModel
from training.flags import add_sampling_flags
from util import logs
from util.cli import Parser, add_flags, number, whole
from util.errors import UserError, blame, require_writable_file, require_writable_folder, run
from util.geometry import TokenGrid, grid_side
from visualization.class_names import parse_classes, read_class_names
from visualization.drawing import Sheet, resized, write_picture
from visualization.generation import images_so_far, step_titles, strip_steps
from visualization.orders import ShownOrders, group_frames, plot_distances, plot_step_maps
from visualization.scalar_history import read_history
from visualization.training import LOSS_AXES, plot_training

MAPS_FILE, GROUPS_FILE = "order_steps.png", "order_groups.gif"
DISTANCES_FILE = "order_distances.png"
# The distances are means over so many orders.
NUM_ORDERS = 256
# Images in a row where rows have no meaning.
COLUMNS = 5
# Images whose pixels are made at a time.
DECODED = 16


def build_parser() -> Parser:
    parser = Parser(description="Pictures of orders, generations, samples and training runs.")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", help="what to draw (COMMAND --help)"
    )
    for draw, add_its_flags, about in (
        (draw_order, add_order_flags, "which position is decoded when"),
        (draw_generation, add_generation_flags, "images after every decoding step"),
        (draw_samples, add_samples_flags, "samples with the names of their classes"),
        (draw_training, add_training_flags, "loss and scores of a training run"),
    ):
        name = draw.__name__.removeprefix("draw_")
        command = commands.add_parser(name, help=about, description=f"Draw {about}.")
        add_its_flags(command)
        add_flags(command, "--debug")
        command.set_defaults(draw=draw)
    return parser


def add_order_flags(parser: Parser) -> None:
    group = parser.add_argument_group("orders")
    group.add_argument("--lpd_order_file", help="file or published name of the lpd among --orders")
    add_flags(group, "--orders", default=list(ORDERS))
    group.add_argument("--image_id", type=whole(), default=0, help="whose order is shown")
    help_text = f"orders in the mean distances; by default {NUM_ORDERS}, or all of a smaller file"
    group.add_argument("--num_orders", type=whole(1), help=help_text)
    add_flags(group, "--seed", help="of orders that are made")
    group = parser.add_argument_group("grid and steps")
    add_flags(group, "--img_size", default=None, help="by default the order file's, else 256")
    add_flags(group, "--vqgan_stride", default=16)
    help_text = "K; by default by the order file's name, as in res256_steps20_repulsion2"
    add_flags(group, "--generation_steps", help=help_text)
    add_flags(group, "--group_sizes")
    group = parser.add_argument_group("output")
    help_text = f"folder for {MAPS_FILE}, {GROUPS_FILE} and {DISTANCES_FILE}"
    group.add_argument("--output_dir", required=True, help=help_text)
    add_gif_flag(group)


def add_generation_flags(parser: Parser) -> None:
    group = add_image_flags(parser, "one", ".gif for an animation, .png for a film strip; or both")
    group.add_argument("--strip_steps", type=whole(1), default=12, help="most steps of a strip")
    add_gif_flag(group)


def add_samples_flags(parser: Parser) -> None:
    group = add_image_flags(parser, "eight", ".png")
    group.add_argument("--eval_bsz", type=whole(1), default=64, help="images at a time")


def add_training_flags(parser: Parser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--log_dir", required=True, help="the run's TensorBoard folder")
    help_text = "scale of the loss"
    group.add_argument("--loss_axis", choices=LOSS_AXES, default=LOSS_AXES[0], help=help_text)
    group = parser.add_argument_group("output")
    add_flags(group, "--output", nargs=1, required=True, help=".png")


def add_image_flags(parser: Parser, per_class: str, files: str) -> argparse._ArgumentGroup:
    """Add the flags of what is generated and where it goes; return the group of the latter."""
    group = parser.add_argument_group("model")
    add_flags(group, "--pretrained_ckpt", required=True)
    add_flags(group, "--vqgan_path", "--device", "--bf16")
    group = parser.add_argument_group("images")
    help_text = "numbers or names; by default all of up to ten, else ten evenly spread"
    group.add_argument("--classes", nargs="+", metavar="CLASS", help=help_text)
    add_flags(group, "--class_names")
    help_text = f"a multiple of the classes; by default {per_class} a class"
    group.add_argument("--num_images", type=whole(1), help=help_text)
    add_flags(group, "--seed", default=1)
    add_sampling_flags(parser)
    parser.set_defaults(order="lpd")
    group = parser.add_argument_group("output")
    add_flags(group, "--output", nargs="+", required=True, metavar="FILE", help=files)
    help_text = "of an image, pixels: enlarged by whole numbers, or shrunk"
    group.add_argument("--side", type=whole(16, 4096), default=128, help=help_text)
    return group


def add_gif_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--seconds", type=number(0.02, 60), default=0.4, help="a step, in a GIF")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command says."""
    args = build_parser().parse_args(argv)
    logs.setup()
    with logs.logging_redirect_tqdm():
        args.draw(args)


def draw_order(args: argparse.Namespace) -> None:
    """Draw maps of the steps, the groups as an animation, and the distances an order trades."""
    published.resolve_flags(args)
    shown, sizes = choose_orders(args)
    folder = require_writable_folder(args.output_dir, "--output_dir")
    with blame("--output_dir"):
        write_picture(plot_step_maps(shown, sizes), folder / MAPS_FILE)
        frames = group_frames(shown, sizes)
        bar = logs.progress(frames, total=len(sizes), desc="frames", unit="step")
        write_picture(list(bar), folder / GROUPS_FILE, args.seconds)
        write_picture(plot_distances(shown, sizes), folder / DISTANCES_FILE)


def choose_orders(args: argparse.Namespace) -> tuple[list[ShownOrders], list[int]]:
    """Read or make the orders of every kind; also return the group sizes."""
    path, image_size, most = args.lpd_order_file, args.img_size, NUM_ORDERS
    if path:
        if "lpd" not in args.orders:
            raise UserError("--lpd_order_file: found no lpd in --orders, expected it there")
        with blame("--lpd_order_file"):
            on_file = read_orders(path, image_size and (image_size // args.vqgan_stride) ** 2)
            image_size = grid_side(on_file.shape[1]) * args.vqgan_stride
        most = min(most, len(on_file))
        if args.generation_steps is None and args.group_sizes is None:
            args.generation_steps = steps_in_name(path)
    with blame("--img_size, --vqgan_stride"):
        grid = TokenGrid(image_size or 256, args.vqgan_stride, vocab_size=1)
    sizes = read_group_sizes(args, grid.num_tokens)
    count = args.num_orders or most
    needed = max(count, args.image_id + 1)
    shown = []
    for text in args.orders:
        from_file = bool(path) and text == "lpd"
        flag = "--lpd_order_file" if from_file else "--orders"
        with blame(flag):
            if from_file:
                expected = f"at least {needed} (--num_orders, --image_id)"
                orders = stored(on_file, path, needed, expected)
            else:
                named = published.resolve(text, published.ORDERS)
                orders = parse_order(named, grid, args.seed, needed)
        warn_of_steps(path if from_file else text, [len(sizes)], flag)
        order = orders(np.array([args.image_id]), sizes)[0]
        shown.append(ShownOrders(order_title(text), order, orders(np.arange(count), sizes)))
    return shown, sizes


def order_title(text: str) -> str:
    """Name an order of the command line for people."""
    kind, *thresholds = text.split(":")
    if kind == "lpd":
        named = [f"{name} = {value}" for name, value in zip("rp", thresholds, strict=False)]
        return ", ".join(["locality-aware", *named])
    return Path(text).name


def read_request(
    args: argparse.Namespace, per_class: int
) -> tuple[LPD, VQModel, list[str], Callable[[np.ndarray], dict[str, Any]]]:
    """Check the flags and load what they name; images are class by class, as many of each.

    Returns the networks, each image's class by name, and the arguments of `generate` by image ids.
    """
    model, tokenizer = read_networks(args)
    names = read_class_names(args.class_names, model.class_num)
    with blame("--classes"):
        args.classes = parse_classes(args.classes, names)
    args.num_images = args.num_images or per_class * len(args.classes)
    if args.num_images % len(args.classes):
        raise UserError(
            f"--num_images: found {args.num_images}, expected a multiple of the "
            f"{len(args.classes)} classes (--classes)"
        )
    labels = np.repeat(args.classes, args.num_images // len(args.classes))
    sizes = read_group_sizes(args, model.grid.num_tokens)
    orders = build_orders(args, model.grid, len(sizes))
    options = {"model": model, "group_sizes": sizes, "seed": args.seed, "sampler": args.sampler}
    options["sampling"] = read_sampling(args, model.label_drop_prob)

    def arguments(ids: np.ndarray) -> dict[str, Any]:
        return {"labels": labels[ids], "orders": orders(ids, sizes), "image_ids": ids, **options}

    return model, tokenizer, [names[label] for label in labels], arguments


def draw_generation(args: argparse.Namespace) -> None:
    """Draw the images after every step: an animation, a film strip of some steps, or both."""
    check_output(args.output, ".gif", ".png")
    model, tokenizer, names, arguments = read_request(args, per_class=1)
    options = arguments(np.arange(len(names)))
    sizes = options["group_sizes"]
    with torch.autocast(model.pos_embed.device.type, torch.bfloat16, enabled=args.bf16):
        states = generate_steps(**options)
        states = list(logs.progress(states, total=len(sizes), desc="decoding", unit="step"))
    some = strip_steps(len(sizes), args.strip_steps)
    wanted = range(len(sizes)) if any(path.suffix == ".gif" for path in args.output) else some
    bar = logs.progress(wanted, desc="images", unit="step")
    images = {step: shown_images(tokenizer, states[step], args.side) for step in bar}
    for path in args.output:
        if path.suffix == ".gif":
            columns = min(len(names), COLUMNS)
            sheet = Sheet(columns, captions=names, titles=step_titles(sizes), side=args.side)
            picture = [sheet.draw(images[step], step) for step in wanted]
        else:
            columns = [f"step {step + 1}" for step in some]
            sheet = Sheet(len(some), names, columns, side=args.side)
            picture = sheet.draw([images[step][row] for row in range(len(names)) for step in some])
        write_picture(picture, path, args.seconds)


def shown_images(tokenizer: VQModel, tokens: torch.Tensor, side: int) -> list[np.ndarray]:
    """Draw what is decoded so far, a few images at a time, in the size in which they are shown."""
    parts = [images_so_far(tokenizer, part).cpu().numpy() for part in tokens.split(DECODED)]
    return [resized(image, side) for part in parts for image in part]


def draw_samples(args: argparse.Namespace) -> None:
    """Draw a row of samples for every class, or one sample of each."""
    check_output(args.output, ".png")
    model, tokenizer, names, arguments = read_request(args, per_class=8)
    decode = build_decoder(tokenizer, model.grid, args.sampler)
    count, per_class, images = len(names), len(names) // len(args.classes), []
    with logs.progress(total=count, desc="samples", unit="image") as bar:
        for ids in np.split(np.arange(count), range(args.eval_bsz, count, args.eval_bsz)):
            with torch.autocast(model.pos_embed.device.type, torch.bfloat16, enabled=args.bf16):
                tokens = generate(**arguments(ids))
            images += list(decode(tokens).cpu().numpy())
            bar.update(len(ids))
    if per_class > 1:
        sheet = Sheet(per_class, row_names=names[::per_class], side=args.side)
    else:
        sheet = Sheet(min(count, COLUMNS), captions=names, side=args.side)
    for path in args.output:
        write_picture(sheet.draw(images), path)


def draw_training(args: argparse.Namespace) -> None:
    """Draw loss, learning rate and scores over the epochs."""
    check_output(args.output, ".png")
    with blame("--log_dir"):
        figure = plot_training(read_history(args.log_dir), args.loss_axis)
    write_picture(figure, args.output[0])


def check_output(paths: Sequence[Path], *suffixes: str) -> None:
    """Find out before the work whether the files can be written."""
    for path in paths:
        if path.suffix not in suffixes:
            raise UserError(
                f"--output: found {path.name!r}, expected a name ending in {' or '.join(suffixes)}"
            )
        require_writable_file(path, "--output")


if __name__ == "__main__":
    run(main)
