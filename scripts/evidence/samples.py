"""How good generated images are in other orders and numbers of steps.

    python scripts/evidence/samples.py digits --pretrained_ckpt checkpoint-last.pth \\
        --vqgan_path vq.pt --data DIR --feature_extractor_weights classifier.pth --steps 64 12 4 \\
        --output samples.json
    python scripts/evidence/samples.py photographs --pretrained_ckpt checkpoint-last.pth \\
        --vqgan_path vq.pt --data DIR --steps 256 20 8 --output samples.json --grid samples.png

For every order and number of steps: the share of images to which a judge, trained on real ones,
gives their label, and the Frechet distance of their features to those of real ones (digits: held
out; photographs: trained on, and a second one, held out). As yardsticks, both of real images and of
what the tokenizer makes of them: the share of held-out ones that the judge recognises, and the
distance of training ones, as many as there are samples where there are.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluation.networks import build_decoder, load_networks
from hub import published
from hub.download import sha256_of
from models.decoding import generate
from models.lpd import LPD
from orders.group_sizes import group_sizes
from orders.sources import ORDERS, OrderSource, parse_order
from scripts.evidence.data_sets import DATA_SETS, Labelled
from tokenizers.vq_model import VQModel
from util import logs
from util.cli import Parser, add_flags, whole
from util.errors import UserError, blame, require_writable_folder, run
from util.files import write_json
from util.geometry import TokenGrid
from util.images import save_grid, to_float
from util.run_record import revision, versions

BATCH_SIZE = 100
# Images of a class in a row of the picture.
SHOWN = 3


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description="Judge generated images, by order and number of steps.")
    parser.add_argument("data_set", choices=DATA_SETS, help="what the models were trained on")
    parser.add_argument("--pretrained_ckpt", type=Path, required=True, help="LPD checkpoint")
    parser.add_argument("--vqgan_path", required=True, help="its tokenizer")
    parser.add_argument("--data", required=True, help="the real images, as they were prepared")
    about = "digits: what demo_digits.py features wrote"
    parser.add_argument("--feature_extractor_weights", help=about)
    add_flags(parser, "--orders", default=list(ORDERS))
    add_flags(parser, "--steps", required=True)
    add_flags(parser, "--cfg")
    parser.add_argument("--samples", type=whole(2), default=500, help="as many of each class")
    add_flags(parser, "--seed", help="of orders and draws")
    add_flags(parser, "--output", required=True)
    parser.add_argument("--grid", type=Path, help="PNG file of real images, and samples below")
    about = {"metavar": "K", "help": "only samples of these steps"}
    parser.add_argument("--grid_steps", nargs="+", type=whole(1), **about)
    add_flags(parser, "--debug")
    return parser


def main(args: argparse.Namespace) -> None:
    """Check everything, generate, judge, write."""
    check_flags(args)
    data = DATA_SETS[args.data_set](args)
    classes = int(data.train.labels.max()) + 1
    per_class, rest = divmod(args.samples, classes)
    if rest:
        raise UserError(f"--samples: found {args.samples}, expected a multiple of {classes}")
    side = data.train.images.shape[-1]
    model, tokenizer = load_networks(args.pretrained_ckpt, args.vqgan_path, side)
    if model.class_num != classes:
        raise UserError(
            f"--pretrained_ckpt: {args.pretrained_ckpt} has {model.class_num} classes, expected "
            f"the {classes} of {args.data_set}"
        )
    model.round_products()
    codec, labels = Codec(tokenizer, model.grid), torch.arange(args.samples) // per_class
    about = {
        "command": shlex.join(["python", *sys.argv]),
        "code": revision(),
        "versions": versions(),
        "data_set": args.data_set,
        "checkpoint": str(args.pretrained_ckpt),
        "checkpoint_sha256": sha256_of(args.pretrained_ckpt),
        "tokenizer_sha256": sha256_of(Path(args.vqgan_path)),
        "samples": args.samples,
        "cfg": args.cfg,
        "seed": args.seed,
    }
    with blame("--orders"):
        paths = [published.resolve(text, published.ORDERS) for text in args.orders]
        sources = [parse_order(path, model.grid, args.seed, args.samples) for path in paths]
    with blame("--steps"):
        lists = [group_sizes(model.grid.num_tokens, steps) for steps in args.steps]

    def measures(judged: Labelled, compared: Labelled) -> dict[str, float]:
        return {"class_accuracy": data.accuracy(judged), **data.distances(compared)}

    # For the judge images that it has not seen, for the distance such as the models learned from.
    real = data.held_out.spread(per_class), data.train.spread(per_class)
    reconstructed = [Labelled(codec.decode(codec.encode(r.images)), r.labels) for r in real]
    scores = {"real": measures(*real), "reconstructed": measures(*reconstructed)}
    results, rows = [], [real[1], reconstructed[1]]
    cases = itertools.product(lists, zip(args.orders, sources, strict=True))
    for sizes, (order, source) in logs.progress(list(cases), desc="samples", unit="setting"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tokens = sample(model, labels, source, sizes, args.cfg, args.seed)
        made = Labelled(codec.decode(tokens), labels)
        results.append({"order": order, "steps": len(sizes), **measures(made, made)})
        if args.grid_steps is None or len(sizes) in args.grid_steps:
            rows.append(made)
    with blame("--output"):
        write_json({**about, **scores, "results": results}, args.output)
    if args.grid is not None:
        shown = torch.cat([row.spread(SHOWN).images for row in rows])
        with blame("--grid"):
            save_grid(shown.permute(0, 2, 3, 1), args.grid, columns=len(shown) // len(rows))


def check_flags(args: argparse.Namespace) -> None:
    """Refuse what can be found out without a file being read."""
    for flag, path in (("--output", args.output), ("--grid", args.grid)):
        if path is not None:
            require_writable_folder(path.parent, flag)
    if args.grid_steps is not None and args.grid is None:
        raise UserError("--grid_steps: found without --grid, expected both or neither")
    for steps in args.grid_steps or ():
        if steps not in args.steps:
            known = ", ".join(map(str, args.steps))
            raise UserError(f"--grid_steps: found {steps}, expected some of --steps: {known}")


def sample(
    model: LPD,
    labels: Tensor,
    source: OrderSource,
    sizes: Sequence[int],
    cfg: float,
    seed: int,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """Generate codes (n, N) of labels (n,); image i has an order and draws of its own."""
    made = []
    for ids in torch.arange(len(labels)).split(batch_size):
        options = dict(cfg=cfg, seed=seed, image_ids=ids.numpy())
        orders = source(ids.numpy(), sizes)
        made.append(generate(model, labels[ids], orders, sizes, **options))
    return torch.cat(made)


class Codec:
    """A tokenizer, from images (n, 3, S, S) uint8 to codes (n, N) and back, in batches."""

    def __init__(self, tokenizer: VQModel, grid: TokenGrid) -> None:
        self._encode = tokenizer.encode_indices
        self._decode = build_decoder(tokenizer, grid, "fast")

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return torch.cat([self._encode(to_float(part)) for part in images.split(BATCH_SIZE)])

    def decode(self, tokens: Tensor) -> Tensor:
        made = torch.cat([self._decode(part) for part in tokens.split(BATCH_SIZE)])
        return made.permute(0, 3, 1, 2)


if __name__ == "__main__":
    logs.setup()
    run(lambda: main(build_parser().parse_args()))
