"""What a model costs: parameters, and operations and bytes per image, by its shapes.

python scripts/count_flops.py lpd_l --generation_steps 20 --cfg 4.8
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from models.lpd import MODELS
from orders.group_sizes import group_sizes, training_group_sizes
from performance import timing as benchmark
from performance.cost import num_parameters, sampling_cost, tokenizer_cost, training_cost
from tokenizers.vq_model import VQModel
from util import logs
from util.cli import Parser, add_flags
from util.errors import blame, run
from util.geometry import TokenGrid

COLUMNS = {
    "work": ("per image", "", 1),
    "operations": ("GFLOP", ",.1f", 1e-9),
    "bytes": ("GB", ",.4f", 1e-9),
}
NOTES = (
    "GFLOP: additions and multiplications of matrix products and convolutions, two per pair;\n"
    "       training with the backward pass (twice the forward; attention 2.5 times).\n"
    "GB: the least to move: weights, stored keys and values at every step; in training gradients\n"
    "    and AdamW's state. Images of a batch share it. No activations.\n"
    "Training is the mean over the group-size lists of the grid.\n"
)


def build_parser() -> Parser:
    parser = Parser(description="Parameters, operations and bytes of a model, from its shapes.")
    parser.add_argument("model", choices=sorted(MODELS), help="network size")
    sizes = ("--img_size", "--vqgan_stride", "--vqgan_vocab_size", "--class_num", "--batch_size")
    add_flags(parser, *sizes)
    parser.set_defaults(vqgan_stride=16, vqgan_vocab_size=16384)
    add_flags(parser, "--generation_steps", default=20, help="decoding steps of an image")
    add_flags(parser, "--cfg", default=4.8, help="guidance; 1 halves the work")
    parser.add_argument(
        "--dtype", choices=("bf16", "f32"), default="bf16", help="of weights and cache"
    )
    add_flags(parser, "--output", "--debug")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Count, show the table and write it."""
    args = build_parser().parse_args(argv)
    logs.setup()
    keep = benchmark.result_file(args.output, torch.device("cpu"))
    with blame("--img_size"):
        grid = TokenGrid(args.img_size, args.vqgan_stride, args.vqgan_vocab_size)
    with blame("--generation_steps"):
        sizes = group_sizes(grid.num_tokens, args.generation_steps)
    sizes_of = ("img_size", "vqgan_stride", "vqgan_vocab_size", "class_num")
    with torch.device("meta"):
        model = MODELS[args.model](**{name: getattr(args, name) for name in sizes_of})
        tokenizer = VQModel(codebook_size=args.vqgan_vocab_size)
    width, lists = benchmark.DTYPES[args.dtype].itemsize, training_group_sizes(grid.num_tokens)
    train = partial(training_cost, model, lists, args.batch_size, width)
    works = {
        f"sampling, {len(sizes)} steps, cfg {args.cfg:g}": sampling_cost(
            model, sizes, args.cfg != 1, args.batch_size, width
        ),
        "training, sparse masks": train(sparse=True),
        "training, dense masks": train(sparse=False),
    }
    if args.vqgan_stride == tokenizer.stride:  # the published tokenizer
        parts = tokenizer_cost(tokenizer, grid.num_tokens, width)
        works |= {f"VQ {name}": part for name, part in parts.items()}
    rows = [{"work": name, **asdict(work)} for name, work in works.items()]
    every, blocks, head = map(num_parameters, (model, model.blocks, model.head))
    parameters = {"all": every, "blocks": blocks, "head": head}
    parameters["embeddings and norms"] = every - blocks - head
    counts = ", ".join(f"{count / 1e6:,.3f} M {name}" for name, count in parameters.items())
    about = f"{args.model}, {args.img_size} px, {args.dtype}, batches of {args.batch_size}"
    table = benchmark.markdown_table(COLUMNS, rows)
    sys.stdout.write(f"{about}: parameters {counts}\n{table}{NOTES}")
    keep(parameters=parameters, rows=rows)


if __name__ == "__main__":
    run(main)
