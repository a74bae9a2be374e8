"""Turn a checkpoint into the form of the Hub and back, bit by bit.

python scripts/convert_checkpoint.py output/lpd_l_256/checkpoint-last.pth my_lpd
python scripts/convert_checkpoint.py my_lpd my_lpd.pth
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hub.pretrained import Pretrained
from hub.published import CONFIG, PUBLISHED, SAFETENSORS, resolve, weights_in_folder
from hub.weights import (
    FINGERPRINT,
    Weights,
    atomic_save,
    read_values,
    read_weights,
    write_safetensors,
)
from models.lpd import LPD
from tokenizers.vq_model import VQModel
from util import logs
from util.cli import Parser, add_flags
from util.errors import UserError, blame, run
from util.files import write_json

logger = logging.getLogger("lpd")


def build_parser() -> Parser:
    parser = Parser(
        description="Turn a training checkpoint or a published .pth into a folder for "
        f"from_pretrained ({SAFETENSORS}, {CONFIG} and a model card), or such a folder into a .pth."
    )
    parser.add_argument("input", metavar="IN", help=".pth, .pt, published name, or a folder")
    parser.add_argument("output", metavar="OUT", help="new folder, or a .pth if IN is a folder")
    parser.add_argument(
        "--results", help="JSON of an evaluation of these weights (metrics.json), for the card"
    )
    add_flags(parser, "--debug")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    logs.setup()
    to_folder, output = not Path(args.input).is_dir(), Path(args.output)
    if to_folder == (output.suffix in (".pth", ".pt")):
        expected = "a folder, as IN is a checkpoint" if to_folder else "a .pth, as IN is a folder"
        raise UserError(f"OUT: found {output}, expected {expected}")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"OUT: {output} is there already, expected a new one")
    results = read_values(Path(args.results), "--results") if args.results else None
    if results is not None and not to_folder:
        raise UserError(f"--results: found {args.results}, expected none: a .pth has no card")
    with blame("IN"):
        if to_folder:
            entry = PUBLISHED.get(args.input.partition("@")[0])
            path = resolve(args.input, entry.kind) if entry else args.input
        else:
            path = weights_in_folder(Path(args.input))
    weights = read_weights(path, "IN")
    model = build(weights, f"IN: {args.input}")
    config = model._hub_mixin_config
    with blame("OUT"):
        (output if to_folder else output.parent).mkdir(parents=True, exist_ok=True)
        if to_folder:
            # As in the file; `save_pretrained` would write the model's float32.
            write_safetensors(weights.state, output / SAFETENSORS)
            write_json(config, output / CONFIG)
            model.generate_model_card(results=results).save(output / "README.md")
        else:  # the published form, with the configuration where each reader looks
            config = {name: value for name, value in config.items() if name != FINGERPRINT}
            content = {"model": weights.state, "config": config, "args": config}
            if weights.fingerprint:
                content[FINGERPRINT] = weights.fingerprint
            atomic_save(content, output)
    left = f"; not carried: {', '.join(weights.others)}" if weights.others else ""
    logger.info("%s: %d tensors of %s%s", output, len(weights.state), type(model).__name__, left)


def build(weights: Weights, what: str) -> Pretrained:
    """Make the network that the weights are of; `what` begins the message if they are of none."""
    if "pos_embed" in weights.state:
        return LPD.from_weights(weights, what)
    if "quantize.embedding.weight" in weights.state:
        return VQModel.from_weights(weights, what)
    raise UserError(f"{what} holds other weights, expected those of LPD or of its tokenizer")


if __name__ == "__main__":
    run(main)
