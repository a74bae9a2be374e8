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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluation.evaluation import build_decoder
from evaluation.networks import load_networks
from hub import published
from hub.download import sha256_of
from models.decoding import generate
from models.lpd import LPD
from orders.group_sizes import group_sizes
from orders.sources import ORDERS, OrderSource, parse_order
from scripts.evidence.data_sets import DATA_SETS, DataSet, Labelled
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
    parser.add_argument(
        "--feature_extractor_weights", help="digits: what demo_digits.py features wrote"
    )
    add_flags(parser, "--orders", default=list(ORDERS))
    add_flags(parser, "--steps", required=True)
    add_flags(parser, "--cfg")
    parser.add_argument("--samples", type=whole(2), default=500, help="as many of each class")
    add_flags(parser, "--seed", help="of orders and draws")
    add_flags(parser, "--output", required=True)
    parser.add_argument("--grid", type=Path, help="PNG file of real images, and samples below")
    parser.add_argument(
        "--grid_steps", nargs="+", type=whole(1), metavar="K", help="only samples of these steps"
    )
    add_flags(parser, "--debug")
    return parser


def main(args: argparse.Namespace) -> None:
    """Check everything, generate, judge, write."""
    check_flags(args)
    data = DATA_SETS[args.data_set](args)
    if args.samples % data.num_classes:
        raise UserError(
            f"--samples: found {args.samples}, expected a multiple of {data.num_classes}"
        )
    sampler, codec = build_networks(args, data)
    about = describe(args)
    grid = sampler.model.grid
    with blame("--orders"):
        sources = [
            parse_order(published.resolve(text, published.ORDERS), grid, args.seed, args.samples)
            for text in args.orders
        ]
    with blame("--steps"):
        lists = [group_sizes(grid.num_tokens, steps) for steps in args.steps]
    # For the judge images that it has not seen, for the distance such as the models learned from.
    per_class = args.samples // data.num_classes
    real = data.held_out.spread(per_class), data.train.spread(per_class)
    reconstructed = tuple(map(codec.reconstructed, real))
    rows = [real[1], reconstructed[1]]
    results = []
    cases = itertools.product(lists, zip(args.orders, sources, strict=True))
    for sizes, (order, source) in logs.progress(list(cases), desc="samples", unit="setting"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tokens = sampler.tokens(source, sizes)
        made = Labelled(codec.images(tokens), sampler.labels)
        results.append({"order": order, "steps": len(sizes), **measures(data, made, made)})
        if args.grid_steps is None or len(sizes) in args.grid_steps:
            rows.append(made)
    scores = {"real": measures(data, *real), "reconstructed": measures(data, *reconstructed)}
    with blame("--output"):
        write_json({**about, **scores, "results": results}, args.output)
    if args.grid is not None:
        shown = torch.cat([row.spread(SHOWN).images for row in rows])
        with blame("--grid"):
            save_grid(shown.permute(0, 2, 3, 1), args.grid, columns=len(shown) // len(rows))


def check_flags(args: argparse.Namespace) -> None:
    """What can be found out without a file being read."""
    for flag, path in (("--output", args.output), ("--grid", args.grid)):
        if path is not None:
            require_writable_folder(path.parent, flag)
    if args.grid_steps is not None:
        if args.grid is None:
            raise UserError("--grid_steps: found without --grid, expected both or neither")
        for steps in args.grid_steps:
            if steps not in args.steps:
                known = ", ".join(map(str, args.steps))
                raise UserError(f"--grid_steps: found {steps}, expected some of --steps: {known}")


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """What makes the figures what they are; the first entries of the JSON file."""
    return {
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


@dataclass(frozen=True)
class Sampler:
    """Makes codes of images, as many of each class.

    Attributes:
        model: in eval mode.
        labels: (n,) int64, sorted.
        cfg: guidance strength.
        seed: of the draws.
        batch_size: images made at once; without influence on them.
    """

    model: LPD
    labels: Tensor
    cfg: float
    seed: int
    batch_size: int = BATCH_SIZE

    def tokens(self, source: OrderSource, sizes: Sequence[int]) -> Tensor:
        """(n, N) int64; image i has class labels[i], and an order and draws of its own."""
        made = []
        for ids in torch.arange(len(self.labels)).split(self.batch_size):
            orders = source(ids.numpy(), sizes)
            options = dict(cfg=self.cfg, seed=self.seed, image_ids=ids.numpy())
            made.append(generate(self.model, self.labels[ids], orders, sizes, **options))
        return torch.cat(made)


class Codec:
    """A tokenizer, from images to codes and back."""

    def __init__(self, tokenizer: VQModel, grid: TokenGrid) -> None:
        self._encode = tokenizer.encode_indices
        self._decode = build_decoder(tokenizer, grid, "fast")

    def images(self, tokens: Tensor) -> Tensor:
        """(n, 3, S, S) uint8 of codes (n, N)."""
        made = torch.cat([self._decode(part) for part in tokens.split(BATCH_SIZE)])
        return made.permute(0, 3, 1, 2)

    @torch.no_grad()
    def reconstructed(self, real: Labelled) -> Labelled:
        """Images after encoding and decoding."""
        parts = real.images.split(BATCH_SIZE)
        tokens = torch.cat([self._encode(to_float(part)) for part in parts])
        return Labelled(self.images(tokens), real.labels)


def build_networks(args: argparse.Namespace, data: DataSet) -> tuple[Sampler, Codec]:
    """The checkpoint's network and the tokenizer it was trained for.

    Raises:
        UserError: they do not fit each other or the data set.
    """
    model, tokenizer = load_networks(args.pretrained_ckpt, args.vqgan_path, data.image_size)
    if model.class_num != data.num_classes:
        raise UserError(
            f"--pretrained_ckpt: {args.pretrained_ckpt} has {model.class_num} classes, expected "
            f"the {data.num_classes} of {args.data_set}"
        )
    labels = torch.arange(args.samples) // (args.samples // data.num_classes)
    sampler = Sampler(model.round_products(), labels, args.cfg, args.seed)
    return sampler, Codec(tokenizer, model.grid)


def measures(data: DataSet, judged: Labelled, compared: Labelled) -> dict[str, float]:
    """What share of some images the judge recognises, and how far some are from real ones."""
    return {"class_accuracy": data.accuracy(judged), **data.distances(compared)}


if __name__ == "__main__":
    logs.setup()
    run(lambda: main(build_parser().parse_args()))
