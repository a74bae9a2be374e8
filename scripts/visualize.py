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
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from evaluation.networks import build_decoder, load_networks
from hub import published
from hub.published import resolve_flags
from models.decoding import generate, generate_steps
from models.lpd import LPD
from models.sampling import SamplingSettings, read_sampling
from orders.order_file import read_orders, steps_in_name, warn_of_steps
from orders.sources import ORDERS, OrderSource, build_orders, parse_order, read_group_sizes, stored
from tokenizers.vq_model import VQModel
from training.flags import add_sampling_flags
from util import distributed, logs
from util.cli import Parser, add_flags, number, whole
from util.errors import UserError, blame, require_writable_folder, run
from util.geometry import TokenGrid, grid_side
from visualization.class_names import parse_classes, read_class_names
from visualization.drawing import Sheet, resized, write_gif, write_png
from visualization.generation import images_so_far, step_titles, strip_steps
from visualization.orders import ShownOrders, group_frames, plot_distances, plot_step_maps
from visualization.scalar_history import read_history
from visualization.training import LOSS_AXES, plot_training

logger = logging.getLogger("lpd")

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
    for name, add_its_flags, draw, about in (
        ("order", add_order_flags, draw_order, "which position is decoded when"),
        ("generation", add_generation_flags, draw_generation, "images after every decoding step"),
        ("samples", add_samples_flags, draw_samples, "samples with the names of their classes"),
        ("training", add_training_flags, draw_training, "loss and scores of a training run"),
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
    add_model_flags(parser, "one a class")
    group = add_output_flags(parser, ".gif for an animation, .png for a film strip; or both")
    group.add_argument("--strip_steps", type=whole(1), default=12, help="most steps of a strip")
    add_gif_flag(group)


def add_samples_flags(parser: Parser) -> None:
    add_model_flags(parser, "eight a class")
    group = add_output_flags(parser, ".png")
    group.add_argument("--eval_bsz", type=whole(1), default=64, help="images at a time")


def add_training_flags(parser: Parser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--log_dir", required=True, help="the run's TensorBoard folder")
    axis, *_ = LOSS_AXES
    group.add_argument("--loss_axis", choices=LOSS_AXES, default=axis, help="scale of the loss")
    group = parser.add_argument_group("output")
    add_flags(group, "--output", nargs=1, required=True, help=".png")


def add_model_flags(parser: Parser, num_images: str) -> None:
    group = parser.add_argument_group("model")
    add_flags(group, "--pretrained_ckpt", required=True)
    add_flags(group, "--vqgan_path", "--device", "--bf16")
    group = parser.add_argument_group("images")
    group.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="numbers or names; by default all of up to ten, else ten evenly spread",
    )
    add_flags(group, "--class_names")
    help_text = f"a multiple of the classes; by default {num_images}"
    group.add_argument("--num_images", type=whole(1), help=help_text)
    add_flags(group, "--seed", default=1)
    add_sampling_flags(parser)
    parser.set_defaults(order="lpd")


def add_output_flags(parser: Parser, files: str) -> argparse._ArgumentGroup:
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
    resolve_flags(args)
    shown, sizes = choose_orders(args)
    folder = require_writable_folder(args.output_dir, "--output_dir")
    with blame("--output_dir"):
        save(plot_step_maps(shown, sizes), folder / MAPS_FILE)
        frames = group_frames(shown, sizes)
        bar = logs.progress(frames, total=len(sizes), desc="frames", unit="step")
        save(list(bar), folder / GROUPS_FILE, args.seconds)
        save(plot_distances(shown, sizes), folder / DISTANCES_FILE)


def choose_orders(args: argparse.Namespace) -> tuple[list[ShownOrders], list[int]]:
    """Read or make the orders of every kind; also return the group sizes."""
    path, on_file = args.lpd_order_file, None
    if path:
        if "lpd" not in args.orders:
            raise UserError("--lpd_order_file: found no lpd in --orders, expected it there")
        num_tokens = (args.img_size // args.vqgan_stride) ** 2 if args.img_size else None
        with blame("--lpd_order_file"):
            on_file = read_orders(path, num_tokens)
            side = grid_side(on_file.shape[1])
        grid = TokenGrid(side * args.vqgan_stride, args.vqgan_stride, vocab_size=1)
        if args.generation_steps is None and args.group_sizes is None:
            args.generation_steps = steps_in_name(path)
    else:
        with blame("--img_size, --vqgan_stride"):
            grid = TokenGrid(args.img_size or 256, args.vqgan_stride, vocab_size=1)
    sizes = read_group_sizes(args, grid.num_tokens)
    most = NUM_ORDERS if on_file is None else min(NUM_ORDERS, len(on_file))
    count = args.num_orders or most
    needed = max(count, args.image_id + 1)
    if path:
        with blame("--lpd_order_file"):
            expected = f"at least {needed} (--num_orders, --image_id)"
            from_file = stored(on_file, path, needed, expected)
        warn_of_steps(path, [len(sizes)])
    shown = []
    for text in args.orders:
        warn_of_steps(text, [len(sizes)], "--orders")
        with blame("--orders"):
            if text == "lpd" and path:
                orders = from_file
            else:
                named = published.resolve(text, published.ORDERS)
                orders = parse_order(named, grid, args.seed, needed)
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


@dataclass(frozen=True, eq=False)
class Request:
    """What to generate, checked: as many images of each class, one class after another."""

    model: LPD
    tokenizer: VQModel
    labels: torch.Tensor
    classes: int  # the same one may be asked for twice
    names: list[str]
    group_sizes: list[int]
    orders: OrderSource
    sampling: SamplingSettings
    options: dict[str, Any]
    autocast: torch.autocast

    def arguments(self, ids: np.ndarray) -> tuple[Any, ...]:
        """Return those of `generate` that stand at the front, for some of the images."""
        orders = self.orders(ids, self.group_sizes)
        return self.model, self.labels[ids], orders, self.group_sizes, self.sampling


def read_request(args: argparse.Namespace, per_class: int) -> Request:
    """Check the flags and load what they name."""
    device = distributed.resolve_device(args.device, distributed.Launch())
    resolve_flags(args)
    model, tokenizer = load_networks(args.pretrained_ckpt, args.vqgan_path)
    with blame("--class_names"):
        names = read_class_names(args.class_names, model.class_num)
    with blame("--classes"):
        classes = parse_classes(args.classes, names)
    if args.num_images is None:
        args.num_images = per_class * len(classes)
    if args.num_images % len(classes):
        raise UserError(
            f"--num_images: found {args.num_images}, expected a multiple of the {len(classes)} "
            "classes (--classes)"
        )
    labels = np.repeat(classes, args.num_images // len(classes))
    sizes = read_group_sizes(args, model.grid.num_tokens)
    orders = build_orders(args, model.grid, len(sizes))
    sampling = read_sampling(args, model.label_drop_prob)
    if args.bf16:
        model.round_products()
    return Request(
        model=model.to(device),
        tokenizer=tokenizer.to(device),
        labels=torch.from_numpy(labels),
        classes=len(classes),
        names=[names[label] for label in labels],
        group_sizes=sizes,
        orders=orders,
        sampling=sampling,
        options={"seed": args.seed, "sampler": args.sampler},
        autocast=torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.bf16),
    )


def draw_generation(args: argparse.Namespace) -> None:
    """Draw the images after every step: an animation, a film strip of some steps, or both."""
    check_output(args.output, ".gif", ".png")
    request = read_request(args, per_class=1)
    count, steps = len(request.labels), len(request.group_sizes)
    with request.autocast:
        states = generate_steps(*request.arguments(np.arange(count)), **request.options)
        states = list(logs.progress(states, total=steps, desc="decoding", unit="step"))
    some = strip_steps(steps, args.strip_steps)
    wanted = range(steps) if any(path.suffix == ".gif" for path in args.output) else some
    bar = logs.progress(wanted, desc="images", unit="step")
    images = {step: shown_images(request.tokenizer, states[step], args.side) for step in bar}
    for path in args.output:
        if path.suffix == ".gif":
            words = {"captions": request.names, "titles": step_titles(request.group_sizes)}
            sheet = Sheet(min(count, COLUMNS), **words, side=args.side)
            save([sheet.draw(images[step], step) for step in range(steps)], path, args.seconds)
        else:
            columns = [f"step {step + 1}" for step in some]
            sheet = Sheet(len(some), request.names, columns, side=args.side)
            rows = np.stack([images[step] for step in some], axis=1)
            save(sheet.draw(rows.reshape(-1, *rows.shape[2:])), path)


def shown_images(tokenizer: VQModel, tokens: torch.Tensor, side: int) -> np.ndarray:
    """Draw what is decoded so far, a few images at a time, in the size in which they are shown."""
    parts = [images_so_far(tokenizer, part).cpu().numpy() for part in tokens.split(DECODED)]
    return np.stack([resized(image, side) for part in parts for image in part])


def draw_samples(args: argparse.Namespace) -> None:
    """Draw a row of samples for every class, or one sample of each."""
    check_output(args.output, ".png")
    request = read_request(args, per_class=8)
    decode = build_decoder(request.tokenizer, request.model.grid, args.sampler)
    count, images = len(request.labels), []
    with logs.progress(total=count, desc="samples", unit="image") as bar:
        for ids in np.split(np.arange(count), range(args.eval_bsz, count, args.eval_bsz)):
            with request.autocast:
                tokens = generate(*request.arguments(ids), **request.options, image_ids=ids)
            images.append(decode(tokens).cpu().numpy())
            bar.update(len(ids))
    columns = count // request.classes
    if columns > 1:
        sheet = Sheet(columns, row_names=request.names[::columns], side=args.side)
    else:
        sheet = Sheet(min(count, COLUMNS), captions=request.names, side=args.side)
    for path in args.output:
        save(sheet.draw(np.concatenate(images)), path)


def draw_training(args: argparse.Namespace) -> None:
    """Draw loss, learning rate and scores over the epochs."""
    check_output(args.output, ".png")
    with blame("--log_dir"):
        figure = plot_training(read_history(args.log_dir), args.loss_axis)
    save(figure, args.output[0])


def check_output(paths: Sequence[Path], *suffixes: str) -> None:
    """Find out before the work whether the files can be written."""
    for path in paths:
        if path.suffix not in suffixes:
            raise UserError(
                f"--output: found {path.name!r}, expected a name ending in {' or '.join(suffixes)}"
            )
        if path.is_dir():
            raise UserError(f"--output: {path} is a folder, expected a file")
        require_writable_folder(path.parent, "--output")


def save(picture: Any, path: Path, seconds: float = 0.0) -> None:
    """Write a figure or an image as PNG, or frames as GIF, and say so."""
    if path.suffix == ".gif":
        write_gif(picture, path, seconds)
    else:
        write_png(picture, path)
    logger.info("wrote %s", path)


if __name__ == "__main__":
    run(main)
