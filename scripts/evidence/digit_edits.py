"""Whether edited digits keep their class.

    python scripts/evidence/digit_edits.py --pretrained_ckpt checkpoint-last.pth \\
        --vqgan_path vq.pt --data DIR --output edits.json --grid edits.png

For each part of the picture: the share of held-out digits that the judge of scripts/demo_digits.py
gives their label after that part was made anew for their class, and without a class; beside it the
shares of the digits as they are, as the tokenizer reconstructs them, with that part black, and of
as many digits generated whole.
"""

import shlex
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluation.networks import load_networks
from models.editing import edit
from scripts.demo_digits import IMAGE_SIZE, read_part, train_judge
from scripts.evidence.samples import Codec
from util import logs
from util.cli import Parser, add_flags, whole
from util.errors import blame, require_writable_folder, run
from util.files import write_json
from util.images import save_grid

# Left, top, right, bottom, as shares of the side.
PARTS = {
    "lower half": (0, 1 / 2, 1, 1),
    "upper half": (0, 0, 1, 1 / 2),
    "left half": (0, 0, 1 / 2, 1),
    "right half": (1 / 2, 0, 1, 1),
    "centre": (1 / 4, 1 / 4, 3 / 4, 3 / 4),
    "all": (0, 0, 1, 1),
}


def main(argv: list[str] | None = None) -> None:
    """Check everything, edit, judge, write."""
    parser = Parser(description="Judge edited digits.")
    add_flags(parser, "--pretrained_ckpt", "--vqgan_path", "--output", required=True)
    parser.add_argument("--data", required=True, help="what demo_digits.py prepare wrote")
    parser.add_argument("--num_images", type=whole(1, 360), default=360, help="spread evenly")
    add_flags(parser, "--cfg", "--seed", "--debug")
    parser.add_argument("--grid", type=Path, required=True, help="PNG file of ten edited digits")
    args = parser.parse_args(argv)
    for flag, path in (("--output", args.output), ("--grid", args.grid)):
        require_writable_folder(path.parent, flag)
    model, tokenizer = load_networks(args.pretrained_ckpt, args.vqgan_path, IMAGE_SIZE)
    judge = train_judge(*read_part(args.data, "train"))
    test, count = read_part(args.data, "test"), args.num_images
    images, labels = (part[torch.arange(count) * len(part) // count] for part in test)
    codec = Codec(tokenizer, model.grid)
    tokens = codec.encode(images)
    reconstructed = codec.decode(tokens)
    shown = torch.arange(min(10, count)) * count // min(10, count)
    results, rows = [], []
    for name, part in logs.progress(PARTS.items(), desc="edits", unit="part"):
        mask = mask_of(part, model.grid.side)
        masks = mask.view(1, -1).expand(count, -1)
        anew = edit(model, tokens, masks, labels, cfg=args.cfg, seed=args.seed)
        classless = edit(model, tokens, masks, None, cfg=1.0, seed=args.seed)
        pictures = {
            "class_accuracy": codec.decode(anew),
            "class_accuracy_without_class": codec.decode(classless),
            "class_accuracy_black": reconstructed * ~mask_of(part, IMAGE_SIZE),
        }
        scores = {kind: judge.score(edited, labels) for kind, edited in pictures.items()}
        results.append({"part": name, "tokens": int(mask.sum()), **scores})
        rows += [pictures[f"class_accuracy{kind}"][shown] for kind in ("_black", "")]
    about = {
        "command": shlex.join(["python", *sys.argv]),
        **{"num_images": count, "cfg": args.cfg, "seed": args.seed},
        "class_accuracy_real": judge.score(images, labels),
        "class_accuracy_reconstructed": judge.score(reconstructed, labels),
    }
    with blame("--output"):
        write_json({**about, "results": results}, args.output)
    with blame("--grid"):
        save_grid(torch.cat(rows).permute(0, 2, 3, 1), args.grid, columns=len(shown))


def mask_of(part: tuple[float, float, float, float], side: int) -> Tensor:
    """(side, side) bool, True in a part of the picture."""
    left, top, right, bottom = (round(share * side) for share in part)
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


if __name__ == "__main__":
    run(main)
