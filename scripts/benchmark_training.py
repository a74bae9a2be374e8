"""Time per training step, as training runs it and as it is plainly written, beside its products.

    python scripts/benchmark_training.py [--quick] [--output training.json]

Weights and tokens are random. All that stands in one line of the table is timed in turn, on the
same batches. Times drift between runs: only ratios taken in one run count.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.lpd import LPD, lpd_l, lpd_tiny, lpd_xl, lpd_xxl
from performance import timing
from performance.training import measure
from util.errors import run

# Title, number format and factor by key.
COLUMNS = timing.COLUMNS | {
    "plain_dtype": ("plain type", "", 1),
    "tokens_per_s": ("tokens/s", ".0f", 1),
    "flop_per_s": ("TFLOP/s", ".3g", 1e-12),
    "rate_share": ("of the rate", ".0%", 1),
    "products_share": ("products / fast", ".0%", 1),
    "waiting_share": ("waiting for data", ".2%", 1),
    "cold_start_s": ("first steps, s", ".1f", 1),
}
NOTES = """\
fast: median optimiser step as training runs it: bfloat16 autocast, fused AdamW, on a GPU compiled
  blocks and sparse masks; each step draws its list of group sizes
plain: the same batches and lists; dense masks made at every step, eager, all logits at once,
  PyTorch's own dropout and unfused AdamW
tokens/s: 2N sequence tokens an image, N known ones and N queries
TFLOP/s: by the rule below, which counts the head for all 2N sequence tokens of an image though only
  N reach it; of the rate: over the fastest of large matrix products in the same rounds and type
products: qkv, proj, fc1, fc2 and head alone, forward and backward, for the rows that are needed
waiting for data: share of the fast loop's time that the host asks a token cache for its next batch
peak: on a GPU of one step's network, optimiser and activations, on a CPU of the process so far
first steps: from a new network on, with compilation

operations of an image = 2N tokens x 6 x (block + head parameters)
"""


class Row(NamedTuple):
    """A network and how it is trained; `steps`: of the only list of group sizes, else all."""

    build: Callable[[], LPD]
    batch_size: int
    steps: int | None = None


DEMO = dict(img_size=32, vqgan_stride=4, vqgan_vocab_size=256, class_num=10)
SMALL_ROWS = {
    "lpd_tiny_32": Row(partial(lpd_tiny, **DEMO), 64, steps=12),
    "lpd_l_x2_256": Row(partial(LPD, decoder_embed_dim=1024, decoder_depth=2), 8),
}
PUBLISHED_ROWS = {
    "lpd_l_256": Row(lpd_l, 64),
    "lpd_xl_256": Row(lpd_xl, 32),
    "lpd_xxl_256": Row(lpd_xxl, 32),
    "lpd_l_512": Row(partial(lpd_l, img_size=512), 16),
    "lpd_xl_512": Row(partial(lpd_xl, img_size=512), 8),
}
ROWS = SMALL_ROWS | PUBLISHED_ROWS


def main(argv: list[str] | None = None) -> None:
    """Measure, show the table and write it."""
    parser = timing.build_parser("per training step", ROWS, quick="the small rows only")
    args, effort = timing.read_effort(parser, argv)
    write = partial(timing.write_figures, args.output, effort.device)
    small = args.quick or effort.device.type == "cpu"

    def series(name: str) -> Iterator[timing.Record]:
        build, batch_size, steps = ROWS[name]
        for size in args.batch_sizes or [batch_size]:
            record, _ = measure(build, size, effort, steps)
            yield {"row": name, "batch_size": size} | record

    rows = args.rows or (SMALL_ROWS if small else PUBLISHED_ROWS)
    timing.show({name: series(name) for name in rows}, COLUMNS, NOTES, write)


if __name__ == "__main__":
    run(main)
