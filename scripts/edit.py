"""Edit an image: what a mask covers is made anew, for a class, beside what is kept.

    python scripts/edit.py --pretrained_ckpt lpd_l_256 --vqgan_path llamagen --bf16 \\
        --image dog.jpg --mask mask.png --class 207 --cfg 4 --variants 4 --output_dir output/edit

Writes 00000.png ... (the variants) and grid.png (original, what is made anew in it, variants).
"""

import argparse
import logging
import re
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset import edit_canvas
from dataset.edit_canvas import Canvas
from dataset.pictures import open_rgb
from evaluation.networks import build_decoder, read_networks
from evaluation.samples import image_file
from hub.published import pinned_flags
from models.editing import edit
from models.sampling import read_sampling
from orders.group_sizes import remaining_group_sizes
from tokenizers.encoding import encode
from training.flags import add_decoding_flags
from util import logs
from util.cli import Parser, add_flags, whole
from util.errors import UserError, blame, require_writable_folder, run
from util.images import save_grid, save_png
from util.run_record import record_run
from visualization.class_names import parse_classes, read_class_names

logger = logging.getLogger("lpd")

GRID_FILE = "grid.png"


def build_parser() -> Parser:
    parser = Parser(description="Make parts of an image anew, with the weights that generate.")
    group = parser.add_argument_group("model")
    add_flags(group, "--pretrained_ckpt", required=True)
    add_flags(group, "--vqgan_path")
    group = parser.add_argument_group("image")
    group.add_argument("--image", required=True, help="of any size and mode")
    text = "crop cuts the middle square out; pad shows all, and the result has its proportions"
    group.add_argument("--fit", default="crop", choices=("crop", "pad"), help=text)
    group = parser.add_argument_group("what to make anew (one of them)")
    add = group.add_mutually_exclusive_group(required=True).add_argument
    add("--mask", help="image, white where to make anew; of the image's size or proportions")
    text = "pixels x0 <= x < x1, y0 <= y < y1 of the image as given"
    add("--box", nargs=4, type=whole(), metavar=("X0", "Y0", "X1", "Y1"), help=text)
    text = "N pixels beside its left, right, top or bottom; --fit crop then cuts at that side"
    add("--outpaint", nargs=2, metavar=("SIDE", "N"), help=text)
    group = parser.add_argument_group("what to make")
    group.add_argument("--class", dest="label", metavar="CLASS", help="number or name; else none")
    add_flags(group, "--class_names")
    group.add_argument("--variants", type=whole(1, 10**5), default=4, help="how many")
    add = group.add_argument
    add("--composite", action="store_true", help="put the original's pixels outside the mask")
    add("--feather", type=whole(0, 2**14), default=4, help="pixels over which --composite fades")
    group = parser.add_argument_group("sampling")
    text = "decoding steps, at most one per token; by default a whole image's in proportion"
    group.add_argument("--steps", type=whole(1), help=text)
    add_flags(group, "--seed", help="of orders and draws")
    add_decoding_flags(group)
    group = parser.add_argument_group("run and output")
    add_flags(group, "--output_dir", help="for images, record and log")
    add_flags(group, "--bf16", "--device", "--debug")
    return parser


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Check and load everything, edit, write."""
    parser = build_parser()
    args = parser.parse_args(argv)
    image, mask, towards = read_picture(args)
    model, tokenizer = read_networks(args)
    sampling = read_sampling(args, model.label_drop_prob)
    names = read_class_names(args.class_names, model.class_num)
    if args.label is None and args.cfg != 1:
        raise UserError(f"--cfg: found {args.cfg:g} without --class, expected 1")
    with blame("--class"):
        label = None if args.label is None else parse_classes([args.label], names)
    with blame("--image"):
        canvas = edit_canvas.fit(image, mask, model.grid.image_size, args.fit, towards)
    tokens, steps = choose_tokens(args, mask, canvas, model.grid.stride)
    folder = require_writable_folder(args.output_dir, "--output_dir")
    files = [image_file(folder, number) for number in range(args.variants)]
    written = {file.resolve() for file in (folder / GRID_FILE, *files)}
    for flag, path in {"--image": args.image, "--mask": args.mask}.items():
        if path and Path(path).resolve() in written:
            raise UserError(f"--output_dir: found {path} ({flag}) there, expected another folder")
    with blame("--output_dir"):
        record_run(parser, pinned_flags(args), folder)
    logger.info("%d of %d tokens in %d steps", tokens.sum(), len(tokens), steps)
    kept = encode(tokenizer, torch.from_numpy(canvas.pixels).permute(2, 0, 1)[None])
    decode = build_decoder(tokenizer, model.grid, args.sampler)
    flags = ("proximity_threshold", "repulsion_threshold", "seed", "sampler")
    options = {"num_steps": args.steps, **{flag: getattr(args, flag) for flag in flags}}
    variants = []
    for ids in logs.progress(torch.arange(args.variants).split(32), desc="variants", unit="batch"):
        given = kept.expand(len(ids), -1), tokens.expand(len(ids), -1), label and label * len(ids)
        with torch.autocast(kept.device.type, dtype=torch.bfloat16, enabled=args.bf16):
            edited = edit(model, *given, sampling, image_ids=ids.numpy(), **options)
        variants += list(decode(edited).cpu().numpy())
    if args.composite:
        variants = canvas.composite(np.stack(variants), args.feather)
    # The original, and red in it what is made anew, most where it is masked.
    original, stride = canvas.pixels.copy(), model.grid.stride
    if args.outpaint:  # which has nothing to show there
        original[canvas.mask] = 128
    cells = np.kron(tokens.view(model.grid.side, -1), np.ones((stride, stride)))
    red = np.where(canvas.mask, 0.85, 0.5 * cells)[..., None]
    anew = np.rint(red * np.array((255, 64, 64)) + (1 - red) * canvas.pixels).astype(np.uint8)
    shown = canvas.picture(np.stack([original, anew, *variants]))
    with blame("--output_dir"):
        for file, variant in zip(files, shown[2:], strict=True):
            save_png(variant, file)
        # About square, and the first row shows a variant.
        save_grid(shown, folder / GRID_FILE, max(3, int(np.ceil(np.sqrt(len(shown))))))
    logger.info("%d variants and %s in %s", len(variants), GRID_FILE, folder)


def read_picture(args: argparse.Namespace) -> tuple[Image.Image, np.ndarray, str | None]:
    """Read the image, its mask (H, W) bool, and at which side to cut if not around the middle."""
    with blame("--image"):
        image = open_rgb(args.image, upright=True)
    if args.mask:
        with blame("--mask"):
            return image, edit_canvas.open_mask(args.mask, image), None
    if args.box:
        with blame("--box"):
            return image, edit_canvas.box_mask(image, args.box), None
    side, count = args.outpaint
    with blame("--outpaint"):
        if side not in edit_canvas.SIDES or not re.fullmatch("[0-9]{1,9}", count):
            expected = "expected left, right, top or bottom and a number of pixels"
            raise ValueError(f"found {side!r} {count!r}, {expected}")
        return *edit_canvas.outpaint(image, side, int(count)), side


def choose_tokens(
    args: argparse.Namespace, mask: np.ndarray, canvas: Canvas, stride: int
) -> tuple[torch.Tensor, int]:
    """Mark the tokens to make anew, (N,) bool, by the whole image's mask; count the steps."""
    tokens = torch.from_numpy(canvas.token_mask(stride))
    masked = int(tokens.sum())
    if mask.any() and not masked:
        found = f"--{'mask' if args.mask else 'box'}: found nothing in the middle of the image"
        raise UserError(f"{found}, all that --fit crop leaves, expected something or --fit pad")
    if args.outpaint and masked == len(tokens):
        raise UserError("--outpaint: found nothing left of the image, expected fewer pixels")
    if not masked:
        logger.warning("--mask: nothing is white, the variants show the reconstruction")
    with blame("--steps"):
        steps = args.steps and min(args.steps, masked)
        return tokens, len(remaining_group_sizes(len(tokens), len(tokens) - masked, steps))


if __name__ == "__main__":
    run(main)
