"""Time per training step, as training runs it and as it is plainly written, beside its products.

    python scripts/benchmark_training.py [--quick] [--output training.json]

Weights and tokens are random. All that stands in one line of the table is timed in turn, on the
same batches. Times drift between runs: only ratios taken in one run count.
"""

import argparse
import gc
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.batches import Batch, CachedTokens, epoch_batches
from dataset.token_cache import open_cache
from dataset.write_cache import write_index, write_shard
from models.cpu import Dropout
from models.lpd import LPD, lpd_l, lpd_tiny, lpd_xl, lpd_xxl
from models.masks import group_causal_mask
from orders.group_sizes import group_sizes, training_group_sizes
from performance import timing as benchmark
from performance.cost import num_parameters
from performance.timing import MOST_ROUNDS, NAMES, Calls, Effort, Record
from training.recipe import BETAS
from util import logs
from util.errors import run

FAST_DTYPE = torch.bfloat16
PLAIN_DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
# Title, number format and factor by key.
COLUMNS = benchmark.COLUMNS | {
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
  N reach it; of the rate: over the fastest of large matrix products of the same type
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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark.build_parser("per training step", ROWS, quick="the small rows only")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Measure, show the table and write it."""
    effort = benchmark.read_effort(args)
    write = partial(benchmark.write_figures, args.output, effort.device)
    write()
    small = args.quick or effort.device.type == "cpu"
    rate = benchmark.measure_rates(effort.device, [FAST_DTYPE])[FAST_DTYPE].rate

    def series(name: str) -> Iterator[Record]:
        for size in args.batch_sizes or [ROWS[name].batch_size]:
            yield {"row": name, "batch_size": size} | measure(name, size, effort, rate)[0]

    rows = args.rows or (SMALL_ROWS if small else PUBLISHED_ROWS)
    benchmark.show({x: series(x) for x in rows}, COLUMNS, NOTES, partial(write, rate=rate))


class Step:
    """One optimiser step of a network of its own, as training runs it or plainly written."""

    def __init__(self, build: Callable[[], LPD], device: torch.device, plain: bool) -> None:
        torch.manual_seed(0)
        self.device, self.plain = device, plain
        self.dtype = PLAIN_DTYPE[device.type] if plain else FAST_DTYPE
        self.model = benchmark.random_weights(build, device).train().requires_grad_(True)
        if plain:
            for module in self.model.modules():
                if isinstance(module, Dropout):
                    module.__class__ = nn.Dropout
        elif device.type == "cuda":
            self.model.compile_blocks(sparse=True)
        parameters = param_groups_weight_decay(self.model, 0.02)
        # False would rule out PyTorch's default on a GPU, too: lists of tensors at a time.
        fused = None if plain else True
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=BETAS, fused=fused)

    def __call__(self, sizes: list[int], batch: Batch) -> Tensor:
        """Train on a batch and return its loss, detached."""
        tokens, labels, orders, drop = batch
        self.optimizer.zero_grad(set_to_none=True)
        autocast = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast):
            if self.plain:
                # The network keeps its masks; here every step makes one.
                with patch("models.lpd.group_causal_mask", group_causal_mask.__wrapped__):
                    logits = self.model.forward_logits(tokens, labels, sizes, orders, drop)
                targets = tokens.gather(1, orders).flatten()
                loss = F.cross_entropy(logits.flatten(0, 1).float(), targets)
            else:
                loss = self.model(tokens, labels, sizes, orders, drop)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 3.0)
        self.optimizer.step()
        return loss.detach()


@contextmanager
def random_batches(model: LPD, batch_size: int, device: torch.device) -> Iterator[Iterator[Batch]]:
    """Feed an epoch of a token cache of random images, which goes with the block."""
    rng, classes = np.random.default_rng(0), list(map(str, range(model.class_num)))
    num_images = max(4096, (MOST_ROUNDS + 2) * batch_size)
    shape = (num_images, 2, model.grid.num_tokens)
    tokens = rng.integers(model.grid.vocab_size, size=shape)
    labels = rng.integers(model.class_num, size=num_images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shard = write_shard(folder, 0, tokens, labels, model.grid.vocab_size)
        write_index(folder, model.grid, "random", classes, [shard])
        source = CachedTokens(open_cache(folder), device)
        options = dict(seed=0, flip_prob=0.5, label_drop_prob=model.label_drop_prob, device=device)
        with closing(epoch_batches(source, 0, batch_size=batch_size, **options)) as batches:
            yield batches


def waiting_share(
    step: Step, batches: Iterator[Batch], drawn: list[list[int]], effort: Effort
) -> float:
    """Measure the share of a training loop's time in which the device has no batch to work on."""
    batch, waited = next(batches), 0.0  # that nothing could prepare: it does not count
    started = time.perf_counter()
    for done, sizes in enumerate(drawn):
        if done >= effort.rounds and time.perf_counter() - started >= effort.seconds:
            break
        benchmark.seconds_of(lambda x=batch, y=sizes: step(y, x), effort.device)
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
    return waited / (time.perf_counter() - started)


def measure(name: str, batch_size: int, effort: Effort, rate: float) -> tuple[Record, Calls]:
    """Time a network's steps, beside operations a second; return the record and the warm calls."""
    # Compiled networks refer to themselves: those measured before are still there.
    torch.compiler.reset()
    gc.collect()
    row, device = ROWS[name], effort.device
    fast = Step(row.build, device, plain=False)
    num_tokens = fast.model.grid.num_tokens
    lists = training_group_sizes(num_tokens)
    if row.steps is not None:
        lists = [group_sizes(num_tokens, row.steps)]
    drawn = random.Random(0).choices(lists, k=MOST_ROUNDS)

    def first_steps(step: Step) -> None:
        # A GPU meets every list, and twice: a first step leaves the optimiser's state behind.
        for sizes in 2 * lists if device.type == "cuda" else drawn[:1]:
            step(sizes, batch)

    def in_turn(subject: Callable[[list[int], Batch], object]) -> Callable[[], object]:
        sizes = itertools.cycle(drawn)
        return lambda: subject(next(sizes), batch)

    with random_batches(fast.model, batch_size, device) as batches:
        batch = next(batches)
        record = benchmark.warm_up(partial(first_steps, fast), device)
        record["waiting_share"] = waiting_share(fast, batches, drawn, effort)
    record["dtype"] = NAMES[fast.dtype]
    multiply = benchmark.bare_products(fast.model, fast.dtype, 2 * batch_size * num_tokens)

    def products(sizes: list[int], batch: Batch) -> None:
        at_head = batch.tokens.numel()
        in_blocks = at_head + len(batch.tokens) * (1 + num_tokens - sizes[-1])
        multiply(in_blocks, at_head, backward=True)

    products(drawn[0], batch)
    calls = {"fast": in_turn(fast), "products": in_turn(products)}
    # What the fast step is compared with.
    if effort.plain:
        plain = Step(row.build, device, plain=True)
        first_steps(plain)
        record["plain_dtype"], calls["plain"] = NAMES[plain.dtype], in_turn(plain)
    record |= benchmark.compare(calls, batch_size, effort)
    parameters = num_parameters(fast.model.blocks) + num_parameters(fast.model.head)
    tokens_per_s = record["images_per_s"] * 2 * num_tokens
    flop_per_s = tokens_per_s * 6 * parameters
    record |= dict(tokens_per_s=tokens_per_s, flop_per_s=flop_per_s, rate_share=flop_per_s / rate)
    return record | {"products_share": record["products_s"] / record["fast_s"]}, calls


if __name__ == "__main__":
    logs.setup()
    run(lambda: main(parse_args()))
