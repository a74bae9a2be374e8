"""What a model costs: parameters, and operations and bytes per image, by its shapes.

python scripts/count_flops.py lpd_l --generation_steps 20 --cfg 4.8
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from models.lpd import MODELS
from orders.group_sizes import group_sizes, training_group_sizes
from performance import cost
from performance import timing as benchmark
from tokenizers.vq_model import VQModel
from util.cli import Parser, add_flags
from util.errors import blame, run
from util.geometry import TokenGrid

COLUMNS = {
    "work": ("per image", "", 1),
    "operations": ("GFLOP", ",.1f", 1e-9),
    "bytes": ("GB", ",.4f", 1e-9),
}
NOTES = """\
GFLOP: products and convolutions, two operations a pair; training with the backward pass, the mean
       over the group-size lists of the grid
GB: the least to move for all images of a batch, divided by their number; no activations
"""
SIZES = ("img_size", "vqgan_stride", "vqgan_vocab_size", "class_num")


def build_parser() -> Parser:
    parser = Parser(description="Parameters, operations and bytes of a model, from its shapes.")
    parser.add_argument("model", choices=sorted(MODELS), help="network size")
    add_flags(parser, *(f"--{name}" for name in SIZES), "--batch_size")
    parser.set_defaults(vqgan_stride=16, vqgan_vocab_size=16384)
    add_flags(parser, "--generation_steps", default=20, help="decoding steps of an image")
    add_flags(parser, "--cfg", default=4.8, help="guidance; 1 halves the work")
    dtypes = dict(choices=("bf16", "f32"), default="bf16")
    parser.add_argument("--dtype", **dtypes, help="of weights and cache")
    add_flags(parser, "--output", "--debug")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Count, show the table and write it."""
    args = build_parser().parse_args(argv)
    with blame("--img_size"):
        grid = TokenGrid(args.img_size, args.vqgan_stride, args.vqgan_vocab_size)
    with blame("--generation_steps"):
        sizes = group_sizes(grid.num_tokens, args.generation_steps)
    with torch.device("meta"):
        model = MODELS[args.model](**{name: getattr(args, name) for name in SIZES})
        tokenizer = VQModel(codebook_size=args.vqgan_vocab_size)
    batch_size, width = args.batch_size, benchmark.DTYPES[args.dtype].itemsize
    steps = cost.decoding_work(model, sizes, batch_size * (1 if args.cfg == 1 else 2), width)
    totals = (sum(column) / batch_size for column in zip(*steps, strict=True))
    works = {f"sampling, {len(sizes)} steps, cfg {args.cfg:g}": cost.Work(*totals)}
    lists = training_group_sizes(grid.num_tokens)
    for kind in ("sparse", "dense"):
        work = cost.training_cost(model, lists, batch_size, width, sparse=kind == "sparse")
        works[f"training, {kind} masks"] = work
    if args.vqgan_stride == tokenizer.stride:  # the published tokenizer
        parts = cost.tokenizer_cost(tokenizer, grid.num_tokens, width)
        works |= {f"VQ {name}": part for name, part in parts.items()}
    rows = [{"work": name, **work._asdict()} for name, work in works.items()]
    parameters = cost.num_parameters(model)
    about = f"{args.model}, {args.img_size} px, {args.dtype}, batches of {batch_size}"
    table = benchmark.markdown_table(COLUMNS, rows)
    sys.stdout.write(f"{about}: {parameters / 1e6:,.3f} M parameters\n{table}{NOTES}")
    benchmark.write_figures(args.output, torch.device("cpu"), parameters=parameters, rows=rows)


if __name__ == "__main__":
    run(main)
