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
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.networks import build_decoder, read_networks
from models.decoding import generate, generate_steps
from models.sampling import read_sampling
from orders.sources import ORDERS, build_orders, read_group_sizes
from tokenizers.vq_model import VQModel
from training.flags import add_sampling_flags
from util import logs
from util.cli import Parser, add_flags, whole
from util.errors import UserError, blame, require_writable_file, require_writable_folder, run
from visualization.class_names import parse_classes, read_class_names
from visualization.drawing import Sheet, write_picture
from visualization.generation import images_so_far, step_titles, strip_steps
from visualization.orders import NUM_ORDERS, draw_orders, read_shown
from visualization.scalar_history import read_history
from visualization.training import plot_training

# Images made at a time, and in a row where rows have no meaning.
BATCH_SIZE, COLUMNS = 32, 5


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
    group = parser.add_argument_group("orders")
    group.add_argument("--lpd_order_file", help="file or published name of the lpd among --orders")
    add_flags(group, "--orders", default=list(ORDERS))
    group.add_argument("--image_id", type=whole(), default=0, help="whose order is shown")
    text = f"orders in the mean distances; by default {NUM_ORDERS}, or all of a smaller file"
    group.add_argument("--num_orders", type=whole(1), help=text)
    add_flags(group, "--seed", help="of orders that are made")
    group = parser.add_argument_group("grid and steps")
    add_flags(group, "--img_size", default=None, help="by default the order file's, else 256")
    add_flags(group, "--vqgan_stride", default=16)
    add_flags(group, "--generation_steps", help="K; by default by the order file's name")
    add_flags(group, "--group_sizes")
    group = parser.add_argument_group("output")
    add_flags(group, "--output_dir", default=None, required=True, help="folder for the pictures")


def add_image_flags(parser: Parser) -> None:
    group = parser.add_argument_group("model")
    add_flags(group, "--pretrained_ckpt", required=True)
    add_flags(group, "--vqgan_path", "--device", "--bf16")
    group = parser.add_argument_group("images")
    text = "numbers or names; by default all of up to ten, else ten evenly spread"
    group.add_argument("--classes", nargs="+", metavar="CLASS", help=text)
    add_flags(group, "--class_names")
    group.add_argument("--num_images", type=whole(1), help="by default 1 a class, of samples 8")
    add_flags(group, "--seed", default=1)
    add_sampling_flags(parser)
    parser.set_defaults(order="lpd")
    group = parser.add_argument_group("output")
    text = ".png, of a generation for a film strip, or .gif for an animation; or both"
    add_flags(group, "--output", nargs="+", required=True, metavar="FILE", help=text)
    group.add_argument("--side", type=whole(16, 4096), default=128, help="of an image, pixels")


def add_training_flags(parser: Parser) -> None:
    group = parser.add_argument_group("run and output")
    group.add_argument("--log_dir", required=True, help="the run's TensorBoard folder")
    add_flags(group, "--output", nargs=1, required=True, help=".png")


def main(argv: list[str] | None = None) -> None:
    """Draw what the command says."""
    args = build_parser().parse_args(argv)
    suffixes = (".gif", ".png") if args.command == "generation" else (".png",)
    for path in vars(args).get("output", ()):
        require_writable_file(path, "--output", *suffixes)
    with logs.logging_redirect_tqdm():
        args.draw(args)


def draw_order(args: argparse.Namespace) -> None:
    """Draw maps of the steps, the groups as an animation, and the distances an order trades."""
    shown, sizes = read_shown(args)
    folder = require_writable_folder(args.output_dir, "--output_dir")
    with blame("--output_dir"):
        draw_orders(shown, sizes, folder)


def read_request(args: argparse.Namespace, per_class: int) -> tuple[VQModel, list[str], dict]:
    """Load what the flags name: tokenizer, each image's class by name, arguments of `generate`."""
    model, tokenizer = read_networks(args)
    names = read_class_names(args.class_names, model.class_num)
    with blame("--classes"):
        args.classes = parse_classes(args.classes, names)
    count = len(args.classes)
    args.num_images = args.num_images or per_class * count
    if args.num_images % count:
        expected = f"expected a multiple of the {count} classes (--classes)"
        raise UserError(f"--num_images: found {args.num_images}, {expected}")
    ids, sizes = np.arange(args.num_images), read_group_sizes(args, model.grid.num_tokens)
    options = dict(model=model, group_sizes=sizes, image_ids=ids)
    options |= dict(seed=args.seed, sampler=args.sampler)
    options["labels"] = np.repeat(args.classes, args.num_images // count)
    options["orders"] = build_orders(args, model.grid, len(sizes))(ids, sizes)
    options["sampling"] = read_sampling(args, model.label_drop_prob)
    return tokenizer, [names[label] for label in options["labels"]], options


def draw_generation(args: argparse.Namespace) -> None:
    """Draw the images after every step: an animation, a film strip of some steps, or both."""
    tokenizer, names, options = read_request(args, per_class=1)
    sizes, device = options["group_sizes"], options["model"].pos_embed.device
    with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
        states = list(logs.progress(generate_steps(**options), total=len(sizes), desc="decoding"))
    some = strip_steps(len(sizes), most=12)
    wanted = range(len(sizes)) if any(path.suffix == ".gif" for path in args.output) else some
    images = {}
    for step in logs.progress(wanted, desc="images", unit="step"):
        parts = [images_so_far(tokenizer, part) for part in states[step].split(BATCH_SIZE)]
        images[step] = torch.cat(parts).cpu().numpy()
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
    tokenizer, names, options = read_request(args, per_class=8)
    model, images = options["model"], []
    decode = build_decoder(tokenizer, model.grid, args.sampler)
    autocast = torch.autocast(model.pos_embed.device.type, torch.bfloat16, enabled=args.bf16)
    with logs.progress(total=len(names), desc="samples", unit="image") as bar:
        for ids in np.split(options["image_ids"], range(BATCH_SIZE, len(names), BATCH_SIZE)):
            part = {name: options[name][ids] for name in ("labels", "orders", "image_ids")}
            with autocast:
                tokens = generate(**options | part)
            images += list(decode(tokens).cpu().numpy())
            bar.update(len(ids))
    per_class = len(names) // len(args.classes)
    if per_class > 1:
        sheet = Sheet(per_class, row_names=names[::per_class], side=args.side)
    else:
        sheet = Sheet(min(len(names), COLUMNS), captions=names, side=args.side)
    for path in args.output:
        write_picture(sheet.draw(images), path)


def draw_training(args: argparse.Namespace) -> None:
    """Draw loss, learning rate and scores over the epochs."""
    with blame("--log_dir"):
        figure = plot_training(read_history(args.log_dir))
    write_picture(figure, args.output[0])


if __name__ == "__main__":
    run(main)
