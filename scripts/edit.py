"""Edit an image: what a mask covers is made anew, for a class, beside what is kept.

    python scripts/edit.py --pretrained_ckpt lpd_l_256 --vqgan_path llamagen --bf16 \\
        --image dog.jpg --mask mask.png --class 207 --cfg 4 --variants 4 --output_dir output/edit

No training is needed for it (method section 10). Writes 00000.png ... (the variants) and grid.png
(the original, what is made anew in it, then the variants). Every token whose cell of the picture
holds a masked pixel is decoded anew; the others are kept bit for bit, so that what is kept looks as
the tokenizer reconstructs it, unless --composite puts the original there.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset import edit_canvas
from dataset.edit_canvas import Canvas
from evaluation.networks import build_decoder, read_networks
from evaluation.samples import image_file
from hub.published import pinned_flags
from models.editing import edit
from models.lpd import LPD
from models.sampling import SamplingSettings, read_sampling
from orders.group_sizes import remaining_group_sizes
from tokenizers.encoding import encode
from tokenizers.vq_model import VQModel
from training.flags import add_decoding_flags
from util import logs
from util.cli import Parser, add_flags, whole
from util.errors import UserError, blame, require_file, require_writable_folder, run
from util.geometry import TokenGrid, grid_side
from util.images import save_grid, save_png
from util.run_record import record_run
from visualization.class_names import parse_classes, read_class_names

logger = logging.getLogger("lpd")

GRID_FILE = "grid.png"
# Variants decoded at once.
BATCH_SIZE = 32
# Over what is made anew, in the picture that shows it: a colour and how much of it.
_RED, _OVER_CELLS, _OVER_MASK = (255, 64, 64), 0.5, 0.85
_GREY = 128


def build_parser() -> Parser:
    parser = Parser(description="Make parts of an image anew, with the weights that generate.")
    group = parser.add_argument_group("model")
    add_flags(group, "--pretrained_ckpt", required=True)
    add_flags(group, "--vqgan_path")
    group = parser.add_argument_group("image")
    group.add_argument("--image", required=True, help="of any size and mode")
    help_text = "crop cuts the middle square out; pad shows all, and the result has its proportions"
    group.add_argument("--fit", default="crop", choices=edit_canvas.FITS, help=help_text)
    group = parser.add_argument_group("what to make anew (one of them)")
    group = group.add_mutually_exclusive_group(required=True)
    help_text = "image, white where to make anew; of the image's size or proportions"
    group.add_argument("--mask", help=help_text)
    help_text = "pixels x0 <= x < x1, y0 <= y < y1 of the image as given"
    corners = ("X0", "Y0", "X1", "Y1")
    group.add_argument("--box", nargs=4, type=whole(), metavar=corners, help=help_text)
    help_text = (
        "N of the image's pixels beside its left, right, top or bottom; --fit crop then cuts at "
        "that side"
    )
    group.add_argument("--outpaint", nargs=2, metavar=("SIDE", "N"), help=help_text)
    group = parser.add_argument_group("what to make")
    group.add_argument("--class", dest="label", metavar="CLASS", help="number or name; else none")
    add_flags(group, "--class_names")
    group.add_argument("--variants", type=whole(1, 10**5), default=4, help="how many")
    help_text = "put the original's pixels outside the mask"
    group.add_argument("--composite", action="store_true", help=help_text)
    help_text = "pixels of the result outside the mask over which --composite fades"
    group.add_argument("--feather", type=whole(0, 2**14), default=4, help=help_text)
    group = parser.add_argument_group("sampling")
    help_text = "decoding steps, at most one per token; by default a whole image's in proportion"
    group.add_argument("--steps", type=whole(1), help=help_text)
    add_flags(group, "--seed", help="of orders and draws")
    add_decoding_flags(group)
    group = parser.add_argument_group("run and output")
    add_flags(group, "--bf16", "--device")
    help_text = "for images, record and log; older variants of higher numbers stay"
    add_flags(group, "--output_dir", help=help_text)
    add_flags(group, "--debug")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Check and load everything, edit, write."""
    parser = build_parser()
    args = parser.parse_args(argv)
    logs.setup()
    image, mask, towards = read_picture(args)
    model, tokenizer = read_networks(args)
    sampling = read_sampling(args, model.label_drop_prob)
    label = read_label(args, model.class_num)
    with blame("--image"):
        canvas = edit_canvas.fit(image, mask, model.grid.image_size, args.fit, towards)
    tokens, steps = choose_tokens(args, canvas, model.grid, anything=mask.any())
    folder = require_writable_folder(args.output_dir, "--output_dir")
    require_other_files(args, folder)
    with blame("--output_dir"):
        record_run(parser, pinned_flags(args), folder)
    logger.info("%d of %d tokens in %d steps", tokens.sum(), len(tokens), steps)
    variants = make(args, (model, tokenizer), canvas.pixels, tokens, label, sampling)
    if args.composite:
        variants = canvas.composite(variants, args.feather)
    with blame("--output_dir"):
        write(args, canvas, tokens, variants, folder)
    logger.info("%d variants and %s in %s", len(variants), GRID_FILE, folder)


def choose_tokens(
    args: argparse.Namespace, canvas: Canvas, grid: TokenGrid, anything: bool
) -> tuple[torch.Tensor, int]:
    """Mark the tokens to make anew, (N,) bool, and count the steps.

    `anything`: there is something to make anew in the whole image.
    """
    tokens = torch.from_numpy(canvas.token_mask(grid.stride))
    masked = int(tokens.sum())
    flag = next(f"--{name}" for name in ("mask", "box", "outpaint") if getattr(args, name))
    if anything and not masked:
        raise UserError(
            f"{flag}: found nothing to make anew in the middle of the image, all that --fit crop "
            "leaves, expected something there or --fit pad"
        )
    if args.outpaint and masked == grid.num_tokens:
        raise UserError(
            f"--outpaint: found {args.outpaint[1]} pixels, which leave nothing of the image, "
            "expected fewer"
        )
    if not masked:
        logger.warning("%s: nothing is white, the variants show the reconstruction", flag)
    with blame("--steps"):
        steps = args.steps and min(args.steps, masked)
        sizes = remaining_group_sizes(grid.num_tokens, grid.num_tokens - masked, steps)
    return tokens, len(sizes)


def require_other_files(args: argparse.Namespace, folder: Path) -> None:
    """Refuse to write over --image or --mask."""
    written = {GRID_FILE, *(image_file(folder, place).name for place in range(args.variants))}
    for flag, path in {"--image": args.image, "--mask": args.mask}.items():
        found = path and Path(path).resolve()
        if found and found.name in written and found.parent.samefile(folder):
            raise UserError(f"--output_dir: found {path} ({flag}) there, expected another folder")


def read_picture(args: argparse.Namespace) -> tuple[Image.Image, np.ndarray, str | None]:
    """Read the image, its mask (H, W) bool, and at which side to cut if not around the middle."""
    path = require_file(args.image, "--image", "an image file")
    with blame("--image"):
        image = edit_canvas.open_picture(path)
    if args.mask:
        path = require_file(args.mask, "--mask", "an image file")
        with blame("--mask"):
            mask = edit_canvas.open_mask(path)
            edit_canvas.check_proportions(image, mask)
        return image, mask, None
    if args.box:
        with blame("--box"):
            return image, edit_canvas.box_mask(image, tuple(args.box)), None
    side, count = args.outpaint
    expected = "expected left, right, top or bottom and a number of pixels"
    if side not in edit_canvas.SIDES or not (
        count.isascii() and count.isdigit() and len(count) < 10
    ):
        raise UserError(f"--outpaint: found {side!r} {count!r}, {expected}")
    with blame("--outpaint"):
        return *edit_canvas.outpaint(image, side, int(count)), side


def read_label(args: argparse.Namespace, class_num: int) -> int | None:
    """Return the number of the class."""
    names = read_class_names(args.class_names, class_num)
    if args.label is None:
        if args.cfg != 1:
            raise UserError(f"--cfg: found {args.cfg:g} without --class, expected 1")
        return None
    with blame("--class"):
        return parse_classes([args.label], names)[0]


@torch.no_grad()
def make(
    args: argparse.Namespace,
    networks: tuple[LPD, VQModel],
    pixels: np.ndarray,
    mask: torch.Tensor,
    label: int | None,
    sampling: SamplingSettings,
) -> np.ndarray:
    """Make the variants (V, S, S, 3) uint8; number i draws by (seed, i)."""
    model, tokenizer = networks
    tokens = encode(tokenizer, torch.from_numpy(pixels).permute(2, 0, 1)[None])
    decode = build_decoder(tokenizer, model.grid, args.sampler)
    names = ("proximity_threshold", "repulsion_threshold", "seed", "sampler")
    options = {"num_steps": args.steps, **{name: getattr(args, name) for name in names}}
    variants = []
    batches = torch.arange(args.variants).split(BATCH_SIZE)
    for ids in logs.progress(batches, desc="variants", unit="batch"):
        images = tokens.expand(len(ids), -1), mask.expand(len(ids), -1)
        labels = None if label is None else torch.full((len(ids),), label)
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=args.bf16):
            edited = edit(model, *images, labels, sampling, image_ids=ids.numpy(), **options)
        variants += list(decode(edited).cpu().numpy())
    return np.stack(variants)


def write(
    args: argparse.Namespace, canvas: Canvas, mask: torch.Tensor, variants: np.ndarray, folder: Path
) -> None:
    """Write the variants, and all of them beside the original and what is made anew in it.

    That is shown by red: half over the cells of tokens, most over masked pixels.
    """
    original = canvas.pixels.copy()
    if args.outpaint:  # which has nothing to show there
        original[canvas.mask] = _GREY
    side = grid_side(len(mask))
    cells = np.kron(mask.view(side, side).numpy(), np.ones([len(original) // side] * 2, dtype=bool))
    red = np.where(canvas.mask, _OVER_MASK, np.where(cells, _OVER_CELLS, 0.0))[..., None]
    anew = np.rint(red * np.array(_RED) + (1 - red) * canvas.pixels).astype(np.uint8)
    shown = canvas.picture(np.stack([original, anew, *variants]))
    for place, variant in enumerate(shown[2:]):
        save_png(variant, image_file(folder, place))
    # About square, and the first row shows a variant.
    save_grid(shown, folder / GRID_FILE, max(3, int(np.ceil(np.sqrt(len(shown))))))


if __name__ == "__main__":
    run(main)
