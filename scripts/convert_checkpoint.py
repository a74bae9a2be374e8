"""Turn a checkpoint into the form of the Hub and back, bit by bit.

python scripts/convert_checkpoint.py output/lpd_l_256/checkpoint-last.pth my_lpd
python scripts/convert_checkpoint.py my_lpd my_lpd.pth
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hub import weights as files
from hub.published import CONFIG, PUBLISHED, SAFETENSORS, resolve, weights_in_folder
from models.lpd import LPD
from tokenizers.vq_model import VQModel
from util.cli import Parser, add_flags
from util.errors import UserError, blame, run
from util.files import write_json

# A weight that only one network has.
NETWORKS = {"pos_embed": LPD, "quantize.embedding.weight": VQModel}


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        description="Turn a training checkpoint or a published .pth into a folder for "
        f"from_pretrained ({SAFETENSORS}, {CONFIG} and a model card), or such a folder into a .pth."
    )
    parser.add_argument("input", metavar="IN", help=".pth, .pt, published name, or a folder")
    parser.add_argument("output", metavar="OUT", help="new folder, or a .pth if IN is a folder")
    means = "JSON of an evaluation of these weights (metrics.json), for the card"
    parser.add_argument("--results", help=means)
    add_flags(parser, "--debug")
    args = parser.parse_args(argv)
    to_folder, output = not Path(args.input).is_dir(), Path(args.output)
    if to_folder == (output.suffix in (".pth", ".pt")):
        expected = "a folder, as IN is a checkpoint" if to_folder else "a .pth, as IN is a folder"
        raise UserError(f"OUT: found {output}, expected {expected}")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"OUT: {output} is there already, expected a new one")
    if args.results and not to_folder:
        raise UserError(f"--results: found {args.results}, expected none: a .pth has no card")
    results = files.read_values(Path(args.results), "--results") if args.results else None
    path = args.input
    with blame("IN"):
        if not to_folder:
            path = weights_in_folder(Path(path))
        elif entry := PUBLISHED.get(path.partition("@")[0]):
            path = resolve(path, entry.kind)
    weights = files.read_weights(path, "IN")
    network = next((NETWORKS[name] for name in NETWORKS if name in weights.state), None)
    if network is None:
        expected = "expected those of LPD or of its tokenizer"
        raise UserError(f"IN: {args.input} holds other weights, {expected}")
    model = network.from_weights(weights, f"IN: {args.input}")
    config = model._hub_mixin_config
    with blame("OUT"):
        (output if to_folder else output.parent).mkdir(parents=True, exist_ok=True)
        if to_folder:
            # As in the file; `save_pretrained` would write the model's float32.
            files.write_safetensors(weights.state, output / SAFETENSORS)
            write_json(config, output / CONFIG)
            model.generate_model_card(results=results).save(output / "README.md")
        else:  # the published form, with the configuration where each reader looks
            config = {name: value for name, value in config.items() if name != files.FINGERPRINT}
            content = {"model": weights.state, "config": config, "args": config}
            if weights.fingerprint:
                content[files.FINGERPRINT] = weights.fingerprint
            files.atomic_save(content, output)
    left = f"; not carried: {', '.join(weights.others)}" if weights.others else ""
    line = "%s: %d tensors of %s%s"
    logging.getLogger("lpd").info(line, output, len(weights.state), network.__name__, left)


if __name__ == "__main__":
    run(main)
