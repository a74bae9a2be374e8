"""How good generated images are in other orders and numbers of steps.

    python scripts/evidence/samples.py photographs --pretrained_ckpt checkpoint-last.pth \\
        --vqgan_path vq.pt --data DIR --steps 256 20 8 --output samples.json --grid samples.png

The share of images to which a judge, trained on real ones, gives their label, and the Frechet
distance of their features to those of real ones. As yardsticks, both of real images and of what the
tokenizer makes of them: held-out ones before the judge, and the distance of training ones, as many
as there are samples where there are.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dataset.image_folder import ImageBatch
from evaluation.networks import build_decoder, load_networks
from hub.download import sha256_of
from models.decoding import generate
from models.lpd import LPD
from orders.sources import ORDERS
from scripts.evidence.data_sets import DATA_SETS
from studies.likelihood import Setting, read_settings
from studies.report import made_by
from tokenizers.vq_model import VQModel
from util import logs
from util.cli import Parser, add_flags, whole
from util.errors import UserError, blame, require_writable_folder, run
from util.files import write_json
from util.geometry import TokenGrid
from util.images import save_grid, to_float

BATCH_SIZE = 100


def main(argv: list[str] | None = None) -> None:
    """Check everything, generate, judge, write."""
    parser = Parser(description="Judge generated images, by order and number of steps.")
    parser.add_argument("data_set", choices=DATA_SETS, help="what the models were trained on")
    add_flags(parser, "--pretrained_ckpt", "--vqgan_path", required=True)
    parser.add_argument("--data", required=True, help="the real images, as they were prepared")
    about = "digits: what demo_digits.py features wrote"
    add_flags(parser, "--feature_extractor_weights", help=about)
    add_flags(parser, "--orders", default=list(ORDERS))
    add_flags(parser, "--steps", "--output", required=True)
    add_flags(parser, "--cfg", "--debug")
    parser.add_argument("--samples", type=whole(2), default=500, help="as many of each class")
    add_flags(parser, "--seed", help="of orders and draws")
    parser.add_argument("--grid", type=Path, help="PNG file of real images, and samples below")
    about = {"metavar": "K", "help": "only samples of these steps"}
    parser.add_argument("--grid_steps", nargs="+", type=whole(1), **about)
    parser.set_defaults(group_sizes=None)
    args = parser.parse_args(argv)
    for flag, path in (("--output", args.output), ("--grid", args.grid)):
        if path is not None:
            require_writable_folder(path.parent, flag)
    data = DATA_SETS[args.data_set](args)
    classes = int(data.train.labels.max()) + 1
    per_class, rest = divmod(args.samples, classes)
    if rest:
        raise UserError(f"--samples: found {args.samples}, expected a multiple of {classes}")
    networks = args.pretrained_ckpt, args.vqgan_path
    model, tokenizer = load_networks(*networks, data.train.images.shape[-1])
    model.round_products()
    codec, labels = Codec(tokenizer, model.grid), torch.arange(args.samples) // per_class
    settings = read_settings(args, model.grid, args.samples)
    about = {
        **{"data_set": args.data_set, **made_by(args.pretrained_ckpt)},
        "tokenizer_sha256": sha256_of(Path(args.vqgan_path)),
        **{name: getattr(args, name) for name in ("samples", "cfg", "seed")},
    }
    # For the judge images that it has not seen, for the distance such as the models learned from.
    real = [spread(part, per_class) for part in (data.held_out, data.train)]
    again = [ImageBatch(codec.decode(codec.encode(part.images)), part.labels) for part in real]
    for name, (judged, compared) in {"real": real, "reconstructed": again}.items():
        about[name] = data.measure(judged, compared.images)
    results, rows = [], [real[1], again[1]]
    for setting in logs.progress(settings, desc="samples", unit="setting"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tokens = sample(model, labels, setting, args.cfg, args.seed)
        made = ImageBatch(codec.decode(tokens), labels)
        scores = data.measure(made, made.images)
        results.append({"order": setting.order, "steps": setting.steps, **scores})
        if args.grid_steps is None or setting.steps in args.grid_steps:
            rows.append(made)
    with blame("--output"):
        write_json({**about, "results": results}, args.output)
    if args.grid is not None:
        shown = torch.cat([spread(row, 3).images for row in rows])
        with blame("--grid"):
            save_grid(shown.permute(0, 2, 3, 1), args.grid, columns=len(shown) // len(rows))


def spread(images: ImageBatch, per_class: int) -> ImageBatch:
    """Choose as many of each class, evenly spread over what there is; all, if that is less."""
    chosen = []
    for label in images.labels.unique():
        (places,) = torch.where(images.labels == label)
        count = min(per_class, len(places))
        chosen.append(places[torch.arange(count) * len(places) // count])
    return ImageBatch(*(values[torch.cat(chosen)] for values in images))


def sample(model: LPD, labels: Tensor, setting: Setting, cfg: float, seed: int) -> Tensor:
    """Generate codes (n, N) of labels (n,); image i has an order and draws of its own."""
    made, sizes = [], setting.group_sizes
    for ids in torch.arange(len(labels)).split(BATCH_SIZE):
        options = dict(cfg=cfg, seed=seed, image_ids=ids.numpy())
        orders = setting.orders(ids.numpy(), sizes)
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
    run(main)
