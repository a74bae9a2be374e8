"""What a model costs: parameters, and operations and bytes per image, by its shapes.

python scripts/count_flops.py lpd_l --generation_steps 20 --cfg 4.8
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.decoding import generate
from models.lpd import LPD, MODELS
from orders.group_sizes import group_sizes, training_group_sizes
from orders.locality import random_orders
from performance import timing as benchmark
from performance.cost import num_parameters, sampling_cost, tokenizer_cost, training_cost
from tokenizers.vq_model import VQModel
from util import logs
from util.cli import Parser, add_flags
from util.errors import blame, run
from util.geometry import TokenGrid

logger = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
COLUMNS = {
    "work": ("per image", "", 1),
    "operations": ("GFLOP", ",.1f", 1e-9),
    "bytes": ("GB", ",.4f", 1e-9),
    "measured": ("measured, GFLOP", ",.1f", 1e-9),
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
    add_flags(parser, "--img_size")
    add_flags(parser, "--vqgan_stride", default=16)
    add_flags(parser, "--vqgan_vocab_size", default=16384)
    add_flags(parser, "--class_num")
    add_flags(parser, "--generation_steps", default=20, help="decoding steps of an image")
    add_flags(parser, "--cfg", default=4.8, help="guidance; 1 halves the work")
    add_flags(parser, "--batch_size")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of weights and cache")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also count while one image is sampled and trained on, on the CPU",
    )
    add_flags(parser, "--output", "--debug")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Count, show the table and write it."""
    args = build_parser().parse_args(argv)
    logs.setup()
    keep = benchmark.result_file(args.output, benchmark.describe_machine(torch.device("cpu")))
    with blame("--img_size"):
        grid = TokenGrid(args.img_size, args.vqgan_stride, args.vqgan_vocab_size)
    with blame("--generation_steps"):
        sizes = group_sizes(grid.num_tokens, args.generation_steps)
    with torch.device("meta"):
        model = build_model(args)
    rows = cost_rows(args, model, sizes)
    if args.measure:
        for row in rows:
            row["measured"] = None
        rows[0]["measured"], rows[2]["measured"] = measure(args, sizes)
    parameters = count_parameters(model)
    counts = ", ".join(f"{count / 1e6:,.3f} M {name}" for name, count in parameters.items())
    about = f"{args.model}, {args.img_size} px, {args.dtype}, batches of {args.batch_size}"
    table = benchmark.markdown_table(COLUMNS, rows)
    sys.stdout.write(f"{about}: parameters {counts}\n{table}{NOTES}")
    keep({"parameters": parameters, "rows": rows})


def build_model(args: argparse.Namespace) -> LPD:
    """Build the network of the flags, on the current device."""
    return MODELS[args.model](
        img_size=args.img_size,
        vqgan_stride=args.vqgan_stride,
        vqgan_vocab_size=args.vqgan_vocab_size,
        class_num=args.class_num,
    )


def cost_rows(args: argparse.Namespace, model: LPD, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Count each kind of work, as `COLUMNS` shows it."""
    width, guided = DTYPES[args.dtype].itemsize, args.cfg != 1
    sampled = sampling_cost(model, sizes, guided, args.batch_size, width)
    lists = training_group_sizes(model.grid.num_tokens)
    sparse, dense = (
        training_cost(model, lists, args.batch_size, width, sparse) for sparse in (True, False)
    )
    works = {
        f"sampling, {len(sizes)} steps, cfg {args.cfg:g}": sampled,
        "training, sparse masks": sparse,
        "training, dense masks": dense,
    }
    if args.vqgan_stride == 16:  # the published tokenizer
        with torch.device("meta"):
            tokenizer = VQModel(codebook_size=args.vqgan_vocab_size)
        parts = tokenizer_cost(tokenizer, model.grid.num_tokens, width)
        works |= {f"VQ {name}": part for name, part in parts.items()}
    return [{"work": name, **asdict(work)} for name, work in works.items()]


def count_parameters(model: LPD) -> dict[str, int]:
    """Count the weights of the network and of its parts."""
    every, blocks, head = map(num_parameters, (model, model.blocks, model.head))
    others = every - blocks - head
    return {"all": every, "blocks": blocks, "head": head, "embeddings and norms": others}


def measure(args: argparse.Namespace, sizes: Sequence[int]) -> tuple[float, float]:
    """Let PyTorch count while one image is sampled plainly, and while one is trained on.

    Attention of the plain path computes a whole rectangle for context and queries together, and
    biases and norms are no products: within 1 % of the table. Training takes each list once.
    """
    model = benchmark.random_weights(lambda: build_model(args), torch.device("cpu"))
    tokens = model.grid.num_tokens
    orders, labels = random_orders(1, tokens), torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as sampling:
        generate(model, labels, orders, sizes, cfg=args.cfg, sampler="plain")
    model.requires_grad_(True)
    lists = training_group_sizes(tokens)
    drop = torch.zeros(1, dtype=torch.bool)
    codes = torch.zeros(1, tokens, dtype=torch.int64)
    with FlopCounterMode(display=False) as training:
        for one in logs.progress(lists, desc="train on an image", unit="list"):
            model(codes, labels, one, torch.from_numpy(orders), drop).backward()
            model.zero_grad(set_to_none=True)
    return sampling.get_total_flops(), training.get_total_flops() / len(lists)


if __name__ == "__main__":
    run(main)
