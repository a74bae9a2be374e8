"""Whether edited digits keep their class.

    python scripts/evidence/digit_edits.py --pretrained_ckpt checkpoint-last.pth \\
        --vqgan_path vq.pt --data DIR --output edits.json --grid edits.png

For each part of the picture: the share of held-out digits that the judge of scripts/demo_digits.py
gives their label after that part was made anew for their class, and without a class; beside it the
shares of the digits as they are, as the tokenizer reconstructs them, with that part black, and of
as many digits generated whole.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluation.networks import load_networks
from models.editing import edit
from scripts.demo_digits import IMAGE_SIZE, accuracy, read_part, train_judge
from scripts.evidence.samples import Codec
from util import logs
from util.cli import Parser, add_flags, whole
from util.errors import blame, require_writable_folder, run
from util.files import write_json
from util.images import save_grid

logger = logging.getLogger(__name__)

# Left, top, right, bottom, as shares of the side.
PARTS = {
    "lower half": (0, 1 / 2, 1, 1),
    "upper half": (0, 0, 1, 1 / 2),
    "left half": (0, 0, 1 / 2, 1),
    "right half": (1 / 2, 0, 1, 1),
    "centre": (1 / 4, 1 / 4, 3 / 4, 3 / 4),
    "all": (0, 0, 1, 1),
}
# Digits shown of each part, as they are above as they are made.
SHOWN = 10


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Judge edited digits.")
    parser.add_argument("--pretrained_ckpt", type=Path, required=True, help="LPD checkpoint")
    parser.add_argument("--vqgan_path", required=True, help="tokenizer of the digits")
    parser.add_argument("--data", required=True, help="what demo_digits.py prepare wrote")
    parser.add_argument("--num_images", type=whole(1), help="spread evenly; by default all")
    add_flags(parser, "--cfg")
    add_flags(parser, "--seed", help="of orders and draws")
    add_flags(parser, "--output", required=True)
    parser.add_argument("--grid", type=Path, help="PNG file of some edited digits")
    add_flags(parser, "--debug")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Check everything, edit, judge, write."""
    for flag, path in (("--output", args.output), ("--grid", args.grid)):
        if path is not None:
            require_writable_folder(path.parent, flag)
    model, tokenizer = load_networks(args.pretrained_ckpt, args.vqgan_path, IMAGE_SIZE)
    images, labels = read_part(args.data, "test")
    count = len(images) if args.num_images is None else min(args.num_images, len(images))
    chosen = torch.arange(count) * len(images) // count
    images, labels = images[chosen], labels[chosen]
    judge = train_judge(*read_part(args.data, "train"))
    codec = Codec(tokenizer, model.grid)
    tokens = codec.encode(images)
    reconstructed = codec.decode(tokens)
    shown = torch.arange(min(SHOWN, count)) * count // min(SHOWN, count)
    results, rows = [], []
    for name, part in logs.progress(PARTS.items(), desc="edits", unit="part"):
        mask = mask_of(part, model.grid.side)
        masks = mask.view(1, -1).expand(count, -1)
        made = {
            "": edit(model, tokens, masks, labels, cfg=args.cfg, seed=args.seed),
            "_without_class": edit(model, tokens, masks, None, cfg=1.0, seed=args.seed),
        }
        pictures = {kind: codec.decode(codes) for kind, codes in made.items()}
        pictures["_black"] = reconstructed * ~mask_of(part, IMAGE_SIZE)
        scores = {
            f"class_accuracy{kind}": accuracy(judge, edited, labels)
            for kind, edited in pictures.items()
        }
        logger.info("%s: %.3f", name, scores["class_accuracy"])
        results.append({"part": name, "tokens": int(mask.sum()), **scores})
        rows += [pictures["_black"][shown], pictures[""][shown]]
    about = {
        "command": shlex.join(["python", *sys.argv]),
        "num_images": count,
        "cfg": args.cfg,
        "seed": args.seed,
        "class_accuracy_real": accuracy(judge, images, labels),
        "class_accuracy_reconstructed": accuracy(judge, reconstructed, labels),
    }
    with blame("--output"):
        write_json({**about, "results": results}, args.output)
    if args.grid is not None:
        with blame("--grid"):
            save_grid(torch.cat(rows).permute(0, 2, 3, 1), args.grid, columns=len(rows[0]))


def mask_of(part: tuple[float, float, float, float], side: int) -> Tensor:
    """(side, side) bool, True in a part of the picture."""
    left, top, right, bottom = (round(share * side) for share in part)
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


if __name__ == "__main__":
    logs.setup()
    run(lambda: main(parse_args()))
