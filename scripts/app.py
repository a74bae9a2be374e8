"""A page to play with: generate, edit and compare orders in a browser.

    python scripts/app.py

shows it at http://127.0.0.1:7860 with the weights that scripts/demo.sh has trained, or

    python scripts/app.py --pretrained_ckpt lpd_l_256 --vqgan_path llamagen --bf16

with others. It needs Gradio: pip install -r requirements-app.txt. Nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.server import listen, serve
from app.studio import Studio
from evaluation.networks import read_networks
from models.sampling import warn_of_guidance
from util import logs
from util.cli import Parser, add_flags, whole
from util.errors import UserError, run
from visualization.class_names import read_class_names

# Where scripts/demo.sh leaves its weights.
DEMO_CHECKPOINT = Path("output/demo/checkpoint-last.pth")
DEMO_TOKENIZER = Path("output/demo/tokenizer/vq.pt")


def build_parser() -> Parser:
    parser = Parser(description="Generate, edit and compare orders in a browser.")
    group = parser.add_argument_group("model")
    help_text = "LPD checkpoint or published name; by default that of scripts/demo.sh"
    group.add_argument("--pretrained_ckpt", help=help_text)
    help_text = "tokenizer checkpoint, or llamagen for the published one; the demo has its own"
    add_flags(group, "--vqgan_path", help=help_text)
    add_flags(group, "--class_names", "--bf16")
    group.add_argument("--device", help="cuda or cpu; by default a GPU if there is one")
    group = parser.add_argument_group("address")
    help_text = "0.0.0.0 lets other machines see the page"
    group.add_argument("--host", default="127.0.0.1", help=help_text)
    group.add_argument("--port", type=whole(0, 65535), default=7860, help="0 for any free one")
    add_flags(parser, "--debug")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Check and load everything, then show the page."""
    args = build_parser().parse_args(argv)
    logs.setup()
    if args.device is None:
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.pretrained_ckpt is None:
        choose_demo(args)
    model, tokenizer = read_networks(args)
    warn_of_guidance(model.label_drop_prob, "the page offers guidance")
    names = read_class_names(args.class_names, model.class_num)
    studio = Studio(model, tokenizer, names, args.bf16)
    with listen(args.host, args.port) as server_socket:
        serve(studio, describe(args.pretrained_ckpt, studio), server_socket)


def choose_demo(args: argparse.Namespace) -> None:
    """Let the flags name the demo's weights, tokenizer and classes."""
    for path in (DEMO_CHECKPOINT, DEMO_TOKENIZER):
        if not path.exists():
            raise UserError(
                f"--pretrained_ckpt: not given, and {path} does not exist, expected weights, or "
                "those that bash scripts/demo.sh trains in some minutes"
            )
    args.pretrained_ckpt, args.vqgan_path = str(DEMO_CHECKPOINT), str(DEMO_TOKENIZER)
    args.class_names = args.class_names or "digits"


def describe(checkpoint: str, studio: Studio) -> str:
    """A line about the model."""
    grid, device = studio.model.grid, studio.model.pos_embed.device
    return (
        f"{checkpoint}: {grid.image_size} x {grid.image_size} pixels, {grid.num_tokens} tokens, "
        f"{studio.model.class_num} classes, on {device.type}"
    )


if __name__ == "__main__":
    run(main)
