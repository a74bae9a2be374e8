"""A page to play with: generate, edit and compare orders in a browser.

    python scripts/app.py

shows it at http://127.0.0.1:7860 with the weights that scripts/demo.sh has trained, or

    python scripts/app.py --pretrained_ckpt lpd_l_256 --vqgan_path llamagen --bf16

with others. It needs Gradio: pip install -r requirements-app.txt. Nothing leaves this machine.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.server import listen, serve
from app.studio import Studio
from evaluation.networks import read_networks
from models.sampling import warn_of_guidance
from util.cli import Parser, add_flags, whole
from util.errors import UserError, run
from visualization.class_names import read_class_names

DEMO = Path("output/demo")  # where scripts/demo.sh leaves its weights


def build_parser() -> Parser:
    parser = Parser(description="Generate, edit and compare orders in a browser.")
    group = parser.add_argument_group("model")
    add_flags(group, "--pretrained_ckpt", help="file or published name; by default the demo's")
    add_flags(group, "--vqgan_path", help="file, or llamagen; the demo has its own")
    add_flags(group, "--class_names", "--bf16")
    add_flags(group, "--device", default=None, help="by default cuda where there is one, else cpu")
    group = parser.add_argument_group("address")
    group.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    group.add_argument("--port", type=whole(0, 65535), default=7860, help="0 for any free one")
    add_flags(parser, "--debug")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Check and load everything, then show the page."""
    args = build_parser().parse_args(argv)
    if args.device is None:
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.pretrained_ckpt is None:
        args.pretrained_ckpt = str(DEMO / "checkpoint-last.pth")
        args.vqgan_path = str(DEMO / "tokenizer" / "vq.pt")
        args.class_names = args.class_names or "digits"
        if not Path(args.pretrained_ckpt).exists():
            raise UserError(
                f"--pretrained_ckpt: not given, and {args.pretrained_ckpt} does not exist, "
                "expected weights, or those that bash scripts/demo.sh trains in some minutes"
            )
    model, tokenizer = read_networks(args)
    warn_of_guidance(model.label_drop_prob, "the page offers guidance")
    names = read_class_names(args.class_names, model.class_num)
    about = (
        f"{args.pretrained_ckpt}: {model.grid.image_size} x {model.grid.image_size} pixels, "
        f"{model.grid.num_tokens} tokens, {model.class_num} classes, on {args.device}"
    )
    with listen(args.host, args.port) as server_socket:
        serve(Studio(model, tokenizer, names, args.bf16), about, server_socket)


if __name__ == "__main__":
    run(main)
