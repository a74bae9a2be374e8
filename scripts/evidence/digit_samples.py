"""How good the demo's generated digits are in other orders and numbers of steps.

    python scripts/evidence/digit_samples.py --pretrained_ckpt checkpoint-last.pth \\
        --vqgan_path vq.pt --data DIR --classifier classifier.pth --output samples.json

For every order and number of steps: the share of digits that the judge of scripts/demo_digits.py
gives their label, and the Frechet distance of the demo's classifier features to the test part.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.decoding import generate
from models.lpd import LPD
from orders.group_sizes import group_sizes
from scripts.demo_digits import IMAGE_SIZE, NUM_CLASSES, accuracy, read_part, train_judge
from util import logs
from util.checkpoints.networks import load_networks
from util.cli import Parser, number, random_seed, whole
from util.errors import UserError, blame, require_writable_folder, run
from util.files import write_json
from util.order_study.kinds import OrderKind, parse_order_kind
from util.runs.evaluation import build_decoder
from util.scores.features import build_extractor, extract
from util.scores.metrics import feature_statistics, frechet_distance

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
BATCH_SIZE = 100


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Judge generated digits, by order and number of steps.")
    parser.add_argument("--pretrained_ckpt", type=Path, required=True, help="LPD checkpoint")
    parser.add_argument("--vqgan_path", required=True, help="tokenizer of the digits")
    parser.add_argument("--data", required=True, help="what demo_digits.py prepare wrote")
    parser.add_argument("--classifier", required=True, help="what demo_digits.py features wrote")
    parser.add_argument("--orders", nargs="+", default=["lpd", "random", "raster"], metavar="ORDER")
    parser.add_argument(
        "--steps", nargs="+", type=whole(1), default=[64, 32, 16, 12, 8, 6, 4], metavar="K"
    )
    parser.add_argument("--cfg", type=number(), default=1.0, help="guidance strength; 1 is none")
    parser.add_argument("--samples", type=whole(2), default=500, help="a multiple of ten")
    parser.add_argument("--seed", type=random_seed, default=0, help="of orders and draws")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of bad input")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Check everything, generate, judge, write."""
    if args.samples % NUM_CLASSES:
        raise UserError(f"--samples: found {args.samples}, expected a multiple of {NUM_CLASSES}")
    require_writable_folder(args.output.parent, "--output")
    sampler = build_sampler(args)
    with blame("--orders"):
        grid = sampler.model.grid
        kinds = [parse_order_kind(text, grid, args.seed, args.samples) for text in args.orders]
    with blame("--steps"):
        lists = [group_sizes(grid.num_tokens, steps) for steps in args.steps]
    extractor = build_extractor("digits", args.classifier, CPU)
    test, test_labels = read_part(args.data, "test")
    judge = train_judge(*read_part(args.data, "train"))
    real = feature_statistics(extract(extractor, test.permute(0, 2, 3, 1)).pool)
    results = []
    cases = [(sizes, kind) for sizes in lists for kind in kinds]
    for sizes, kind in logs.progress(cases, desc="samples", unit="setting"):
        made = sampler.images(kind, sizes)
        found = feature_statistics(extract(extractor, made).pool)
        results.append(
            {
                "order": kind.name,
                "steps": len(sizes),
                "class_accuracy": accuracy(judge, made.permute(0, 3, 1, 2), sampler.labels),
                "frechet_distance": round(float(frechet_distance(found, real)), 4),
            }
        )
    about = {
        "command": shlex.join(["python", *sys.argv]),
        "samples": args.samples,
        "cfg": args.cfg,
        "class_accuracy_real_test": accuracy(judge, test, test_labels),
    }
    with blame("--output"):
        write_json({**about, "results": results}, args.output)


@dataclass(frozen=True)
class Sampler:
    """Makes digits, as many of each class.

    Attributes:
        model: in eval mode.
        decode: codes (B, N) int64 -> images (B, 32, 32, 3) uint8.
        labels: (n,) int64, sorted.
        cfg: guidance strength.
        seed: of the draws.
    """

    model: LPD
    decode: Callable[[Tensor], Tensor]
    labels: Tensor
    cfg: float
    seed: int

    def images(self, kind: OrderKind, sizes: Sequence[int]) -> Tensor:
        """(n, 32, 32, 3) uint8."""
        made = []
        for ids in torch.arange(len(self.labels)).split(BATCH_SIZE):
            orders = kind.make(ids.numpy(), sizes)
            options = dict(cfg=self.cfg, seed=self.seed, image_ids=ids.numpy())
            with torch.autocast("cpu", dtype=torch.bfloat16):
                tokens = generate(self.model, self.labels[ids], orders, sizes, **options)
            made.append(self.decode(tokens))
        return torch.cat(made)


def build_sampler(args: argparse.Namespace) -> Sampler:
    """The checkpoint's network with the tokenizer it was trained for."""
    model, tokenizer = load_networks(args.pretrained_ckpt, args.vqgan_path, IMAGE_SIZE)
    return Sampler(
        model=model.round_products(),
        decode=build_decoder(tokenizer, model.grid, "fast"),
        labels=torch.arange(args.samples) // (args.samples // NUM_CLASSES),
        cfg=args.cfg,
        seed=args.seed,
    )


if __name__ == "__main__":
    logs.setup()
    run(lambda: main(parse_args()))
