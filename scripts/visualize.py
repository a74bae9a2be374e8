"""Pictures of orders, of generations, of samples and of training runs.

    python scripts/visualize.py order --lpd_order_file res256_steps20_repulsion2 \\
        --output_dir output/pictures
    python scripts/visualize.py generation --pretrained_ckpt lpd_l_256 --vqgan_path llamagen \\
        --generation_steps 20 --cfg 4.8 --classes 207 980 --output output/steps.gif output/steps.png
    python scripts/visualize.py samples ... --class_names imagenet.json --output output/samples.png
    python scripts/visualize.py training --log_dir output/lpd --output output/training.png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.networks import build_decoder, read_networks
from hub import published
from models.decoding import generate, generate_steps
from models.sampling import read_sampling
from orders.order_file import read_orders, steps_in_name, warn_of_steps
from orders.sources import ORDERS, build_orders, parse_order, read_group_sizes, stored
from tokenizers.vq_model import VQModel
from training.flags import add_sampling_flags
from util import logs
from util.cli import Parser, add_flags, whole
from util.errors import UserError, blame, require_writable_file, require_writable_folder, run
from util.geometry import TokenGrid, grid_side
from visualization.class_names import parse_classes, read_class_names
from visualization.drawing import Sheet, resized, write_picture
from visualization.generation import images_so_far, step_titles, strip_steps
from visualization.orders import ShownOrders, group_frames, plot_distances, plot_step_maps
from visualization.scalar_history import read_history
from visualization.training import plot_training

# Of which the distances are means; images made at a time; and in a row where rows have no meaning.
NUM_ORDERS, BATCH_SIZE, COLUMNS = 256, 32, 5


def build_parser() -> Parser:
    parser = Parser(description="Pictures of orders, generations, samples and training runs.")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", help="what to draw (COMMAND --help)"
    )
    for name, draw, add_its_flags, about in (
        ("order", draw_order, add_order_flags, "which position is decoded when"),
        ("generation", draw_generation, add_image_flags, "images after every decoding step"),
        ("samples", draw_samples, add_image_flags, "samples with the names of their classes"),
        ("training", draw_training, add_training_flags, "loss and scores of a training run"),
    ):
        command = commands.add_parser(name, help=about, description=f"Draw {about}.")
        add_its_flags(command)
        add_flags(command, "--debug")
        command.set_defaults(draw=draw)
    return parser


def add_order_flags(parser: Parser) -> None:
    add = parser.add_argument
    add("--lpd_order_file", help="file or published name of the lpd among --orders")
    add_flags(parser, "--orders", default=list(ORDERS))
    add("--image_id", type=whole(), default=0, help="whose order is shown")
    text = f"orders in the mean distances; by default {NUM_ORDERS}, or all of a smaller file"
    add("--num_orders", type=whole(1), help=text)
    add_flags(parser, "--seed", help="of orders that are made")
    add_flags(parser, "--img_size", default=None, help="by default the order file's, else 256")
    add_flags(parser, "--vqgan_stride", default=16)
    text = "K; by default by the order file's name, as in res256_steps20_repulsion2"
    add_flags(parser, "--generation_steps", help=text)
    add_flags(parser, "--group_sizes")
    add_flags(parser, "--output_dir", default=None, required=True, help="folder for the pictures")


def add_image_flags(parser: Parser) -> None:
    add_flags(parser, "--pretrained_ckpt", required=True)
    add_flags(parser, "--vqgan_path", "--device", "--bf16")
    text = "numbers or names; by default all of up to ten, else ten evenly spread"
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help=text)
    add_flags(parser, "--class_names")
    text = "a multiple of the classes; by default one a class, of samples eight"
    parser.add_argument("--num_images", type=whole(1), help=text)
    add_flags(parser, "--seed", default=1)
    add_sampling_flags(parser)
    text = ".png, of a generation for a film strip, or .gif for an animation; or both"
    add_flags(parser, "--output", nargs="+", required=True, metavar="FILE", help=text)
    text = "of an image, pixels: enlarged by whole numbers, or shrunk"
    parser.add_argument("--side", type=whole(16, 4096), default=128, help=text)
    parser.set_defaults(order="lpd")


def add_training_flags(parser: Parser) -> None:
    parser.add_argument("--log_dir", required=True, help="the run's TensorBoard folder")
    add_flags(parser, "--output", nargs=1, required=True, help=".png")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command says."""
    args = build_parser().parse_args(argv)
    logs.setup()
    with logs.logging_redirect_tqdm():
        args.draw(args)


def draw_order(args: argparse.Namespace) -> None:
    """Draw maps of the steps, the groups as an animation, and the distances an order trades."""
    published.resolve_flags(args)
    path, image_size, count = args.lpd_order_file, args.img_size, NUM_ORDERS
    if path:
        if "lpd" not in args.orders:
            raise UserError("--lpd_order_file: found no lpd in --orders, expected it there")
        with blame("--lpd_order_file"):
            on_file = read_orders(path, image_size and (image_size // args.vqgan_stride) ** 2)
            image_size = grid_side(on_file.shape[1]) * args.vqgan_stride
        count = min(count, len(on_file))
        if args.generation_steps is None and args.group_sizes is None:
            args.generation_steps = steps_in_name(path)
    with blame("--img_size, --vqgan_stride"):
        grid = TokenGrid(image_size or 256, args.vqgan_stride, vocab_size=1)
    sizes, count = read_group_sizes(args, grid.num_tokens), args.num_orders or count
    needed, shown = max(count, args.image_id + 1), []
    for text in args.orders:
        from_file = bool(path) and text == "lpd"
        flag, name = ("--lpd_order_file", path) if from_file else ("--orders", text)
        with blame(flag):
            if from_file:
                orders = stored(on_file, path, needed, f"one for each of {needed} images")
            else:
                named = published.resolve(text, published.ORDERS)
                orders = parse_order(named, grid, args.seed, needed)
        warn_of_steps(name, [len(sizes)], flag)
        order = orders(np.array([args.image_id]), sizes)[0]
        title = ORDERS.get(text, Path(text).name)
        shown.append(ShownOrders(title, order, orders(np.arange(count), sizes)))
    folder = require_writable_folder(args.output_dir, "--output_dir")
    with blame("--output_dir"):
        write_picture(plot_step_maps(shown, sizes), folder / "order_steps.png")
        frames = logs.progress(group_frames(shown, sizes), total=len(sizes), desc="frames")
        write_picture(list(frames), folder / "order_groups.gif")
        write_picture(plot_distances(shown, sizes), folder / "order_distances.png")


def read_request(
    args: argparse.Namespace, per_class: int
) -> tuple[VQModel, list[str], dict[str, Any]]:
    """Check the flags and load what they name; images are class by class, as many of each.

    Returns the tokenizer, each image's class by name, and the arguments of `generate` for all.
    """
    model, tokenizer = read_networks(args)
    names = read_class_names(args.class_names, model.class_num)
    with blame("--classes"):
        args.classes = parse_classes(args.classes, names)
    count = len(args.classes)
    args.num_images = args.num_images or per_class * count
    if args.num_images % count:
        expected = f"expected a multiple of the {count} classes (--classes)"
        raise UserError(f"--num_images: found {args.num_images}, {expected}")
    labels, ids = np.repeat(args.classes, args.num_images // count), np.arange(args.num_images)
    sizes = read_group_sizes(args, model.grid.num_tokens)
    options = {"model": model, "group_sizes": sizes, "seed": args.seed, "sampler": args.sampler}
    options |= {"labels": labels, "image_ids": ids}
    options["orders"] = build_orders(args, model.grid, len(sizes))(ids, sizes)
    options["sampling"] = read_sampling(args, model.label_drop_prob)
    return tokenizer, [names[label] for label in labels], options


def draw_generation(args: argparse.Namespace) -> None:
    """Draw the images after every step: an animation, a film strip of some steps, or both."""
    check_output(args.output, ".gif", ".png")
    tokenizer, names, options = read_request(args, per_class=1)
    sizes, device = options["group_sizes"], options["model"].pos_embed.device
    with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
        states = list(logs.progress(generate_steps(**options), total=len(sizes), desc="decoding"))
    some = strip_steps(len(sizes), most=12)
    wanted = range(len(sizes)) if any(path.suffix == ".gif" for path in args.output) else some
    images = {}
    for step in logs.progress(wanted, desc="images", unit="step"):
        parts = [images_so_far(tokenizer, part) for part in states[step].split(BATCH_SIZE)]
        images[step] = [resized(image, args.side) for image in torch.cat(parts).cpu().numpy()]
    for path in args.output:
        if path.suffix == ".gif":
            columns = min(len(names), COLUMNS)
            sheet = Sheet(columns, captions=names, titles=step_titles(sizes), side=args.side)
            picture = [sheet.draw(images[step], step) for step in wanted]
        else:
            columns = [f"step {step + 1}" for step in some]
            sheet = Sheet(len(some), names, columns, side=args.side)
            picture = sheet.draw([images[step][row] for row in range(len(names)) for step in some])
        write_picture(picture, path)


def draw_samples(args: argparse.Namespace) -> None:
    """Draw a row of samples for every class, or one sample of each."""
    check_output(args.output, ".png")
    tokenizer, names, options = read_request(args, per_class=8)
    model, images = options["model"], []
    decode = build_decoder(tokenizer, model.grid, args.sampler)
    batches = np.split(options["image_ids"], range(BATCH_SIZE, len(names), BATCH_SIZE))
    for ids in logs.progress(batches, desc="samples", unit="batch"):
        part = {name: options[name][ids] for name in ("labels", "orders", "image_ids")}
        with torch.autocast(model.pos_embed.device.type, torch.bfloat16, enabled=args.bf16):
            tokens = generate(**options | part)
        images += list(decode(tokens).cpu().numpy())
    per_class = len(names) // len(args.classes)
    if per_class > 1:
        sheet = Sheet(per_class, row_names=names[::per_class], side=args.side)
    else:
        sheet = Sheet(min(len(names), COLUMNS), captions=names, side=args.side)
    for path in args.output:
        write_picture(sheet.draw(images), path)


def draw_training(args: argparse.Namespace) -> None:
    """Draw loss, learning rate and scores over the epochs."""
    check_output(args.output, ".png")
    with blame("--log_dir"):
        figure = plot_training(read_history(args.log_dir))
    write_picture(figure, args.output[0])


def check_output(paths: Sequence[Path], *suffixes: str) -> None:
    """Find out before the work whether the files can be written."""
    for path in paths:
        if path.suffix not in suffixes:
            expected = f"expected a name ending in {' or '.join(suffixes)}"
            raise UserError(f"--output: found {path.name!r}, {expected}")
        require_writable_file(path, "--output")


if __name__ == "__main__":
    run(main)
