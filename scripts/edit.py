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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset import edit_canvas as canvas
from dataset.edit_canvas import Canvas
from evaluation.networks import build_decoder, load_networks
from evaluation.samples import image_file
from hub.published import pinned_flags, resolve_flags
from models.editing import edit
from models.lpd import LPD
from models.sampling import SamplingSettings, read_sampling
from orders.group_sizes import remaining_group_sizes
from tokenizers.encoding import encode
from tokenizers.vq_model import VQModel
from training.flags import add_decoding_flags
from util import distributed, logs
from util.cli import Parser, add_flags, whole
from util.errors import UserError, blame, require_file, require_writable_folder, run
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
    group.add_argument("--fit", default="crop", choices=canvas.FITS, help=help_text)
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


@dataclass(frozen=True)
class Job:
    """All that one edit needs, checked; model and tokenizer are on the device."""

    model: LPD
    tokenizer: VQModel
    canvas: Canvas
    mask: torch.Tensor  # (N,) bool, tokens to be made anew
    steps: int
    label: int | None
    sampling: SamplingSettings


def main(argv: Sequence[str] | None = None) -> None:
    """Check and load everything, edit, write."""
    parser = build_parser()
    args = parser.parse_args(argv)
    logs.setup()
    device = distributed.resolve_device(args.device, distributed.Launch())
    resolve_flags(args)
    job = prepare(args, device)
    folder = require_writable_folder(args.output_dir, "--output_dir")
    require_other_files(args, folder)
    with blame("--output_dir"):
        record_run(parser, pinned_flags(args), folder)
    variants = make(args, job)
    with blame("--output_dir"):
        write(job, variants, folder, blank=bool(args.outpaint))
    logger.info("%d variants and %s in %s", len(variants), GRID_FILE, folder)


def prepare(args: argparse.Namespace, device: torch.device) -> Job:
    """Check the flags and load what they name."""
    image, mask, towards = read_picture(args)
    model, tokenizer = load_networks(args.pretrained_ckpt, args.vqgan_path)
    sampling = read_sampling(args, model.label_drop_prob)
    label = read_label(args, model, sampling.guided)
    flag = next(f"--{name}" for name in ("mask", "box", "outpaint") if getattr(args, name))
    with blame("--image"):
        fitted = canvas.fit(image, mask, model.grid.image_size, args.fit, towards)
    tokens = fitted.token_mask(model.grid.stride)
    if mask.any() and not tokens.any():
        raise UserError(
            f"{flag}: found nothing to make anew in the middle of the image, all that --fit crop "
            "leaves, expected something there or --fit pad"
        )
    if args.outpaint and tokens.all():
        raise UserError(
            f"--outpaint: found {args.outpaint[1]} pixels, which leave nothing of the image, "
            "expected fewer"
        )
    if not tokens.any():
        logger.warning("%s: nothing is white, the variants show the reconstruction", flag)
    with blame("--steps"):
        masked = int(tokens.sum())
        asked = args.steps and min(args.steps, masked)
        num_tokens = model.grid.num_tokens
        steps = len(remaining_group_sizes(num_tokens, num_tokens - masked, asked))
    if args.bf16:
        model.round_products()
    mask = torch.from_numpy(tokens)
    return Job(model.to(device), tokenizer.to(device), fitted, mask, steps, label, sampling)


def require_other_files(args: argparse.Namespace, folder: Path) -> None:
    """Refuse to write over --image or --mask."""
    written = {GRID_FILE, *(image_file(folder, place).name for place in range(args.variants))}
    for flag, path in (("--image", args.image), ("--mask", args.mask)):
        found = Path(path).resolve() if path else None
        if found and found.name in written and found.parent.samefile(folder):
            raise UserError(f"--output_dir: found {path} ({flag}) there, expected another folder")


def read_picture(args: argparse.Namespace) -> tuple[Image.Image, np.ndarray, str | None]:
    """Read the image, its mask (H, W) bool, and at which side to cut if not around the middle."""
    path = require_file(args.image, "--image", "an image file")
    with blame("--image"):
        image = canvas.open_picture(path)
    if args.mask:
        path = require_file(args.mask, "--mask", "an image file")
        with blame("--mask"):
            mask = canvas.open_mask(path)
            canvas.check_proportions(image, mask)
        return image, mask, None
    if args.box:
        with blame("--box"):
            return image, canvas.box_mask(image, tuple(args.box)), None
    side, count = args.outpaint
    expected = "expected left, right, top or bottom and a number of pixels"
    if side not in canvas.SIDES or not (count.isascii() and count.isdigit() and len(count) < 10):
        raise UserError(f"--outpaint: found {side!r} {count!r}, {expected}")
    with blame("--outpaint"):
        return *canvas.outpaint(image, side, int(count)), side


def read_label(args: argparse.Namespace, model: LPD, guided: bool) -> int | None:
    """Return the number of the class."""
    with blame("--class_names"):
        names = read_class_names(args.class_names, model.class_num)
    if args.label is None:
        if guided:
            raise UserError(f"--cfg: found {args.cfg:g} without --class, expected 1")
        return None
    with blame("--class"):
        (label,) = parse_classes([args.label], names)
    return label


@torch.no_grad()
def make(args: argparse.Namespace, job: Job) -> np.ndarray:
    """Make the variants (V, S, S, 3) uint8; number i draws by (seed, i)."""
    grid, device = job.model.grid, job.model.pos_embed.device
    pixels = torch.from_numpy(job.canvas.pixels).permute(2, 0, 1)[None]
    tokens = encode(job.tokenizer, pixels)
    logger.info("%d of %d tokens in %d steps", job.mask.sum(), grid.num_tokens, job.steps)
    decode = build_decoder(job.tokenizer, grid, args.sampler)
    made = []
    batches = torch.arange(args.variants).split(BATCH_SIZE)
    for ids in logs.progress(batches, desc="variants", unit="batch"):
        labels = None if job.label is None else torch.full((len(ids),), job.label)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.bf16):
            edited = edit(
                job.model,
                tokens.expand(len(ids), -1),
                job.mask.expand(len(ids), -1),
                labels,
                job.sampling,
                num_steps=args.steps,
                proximity_threshold=args.proximity_threshold,
                repulsion_threshold=args.repulsion_threshold,
                seed=args.seed,
                image_ids=ids.numpy(),
                sampler=args.sampler,
            )
        made.append(decode(edited).cpu().numpy())
    variants = np.concatenate(made)
    return job.canvas.composite(variants, args.feather) if args.composite else variants


def write(job: Job, variants: np.ndarray, folder: Path, blank: bool) -> None:
    """Write the variants, and all of them beside the original and what is made anew.

    `blank`: the original has nothing to show under the mask.
    """
    original = job.canvas.pixels.copy()
    if blank:
        original[job.canvas.mask] = _GREY
    tiles = [original, show_mask(job), *variants]
    shown = job.canvas.picture(np.stack(tiles))
    for place, variant in enumerate(shown[2:]):
        save_png(variant, image_file(folder, place))
    # About square, and the first row shows a variant.
    save_grid(shown, folder / GRID_FILE, max(3, int(np.ceil(np.sqrt(len(shown))))))


def show_mask(job: Job) -> np.ndarray:
    """Put red over the picture (S, S, 3) uint8: half over tokens, most over masked pixels."""
    stride = job.model.grid.stride
    cells = job.mask.view(job.model.grid.side, -1).numpy()
    cells = cells.repeat(stride, axis=0).repeat(stride, axis=1)
    red = np.where(job.canvas.mask, _OVER_MASK, np.where(cells, _OVER_CELLS, 0.0))[..., None]
    return np.rint(red * np.array(_RED) + (1 - red) * job.canvas.pixels).astype(np.uint8)


if __name__ == "__main__":
    run(main)
