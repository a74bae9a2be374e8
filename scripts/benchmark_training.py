"""Time per training step, as training runs it and as it is plainly written, beside its products.

    python scripts/benchmark_training.py [--quick] [--output training.json]

Weights and tokens are random. All that stands in one line of the table is timed in turn, on the
same batches. Times drift between runs: only ratios taken in one run count.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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
from models import masks
from models.cpu import Dropout
from models.lpd import LPD, lpd_l, lpd_tiny, lpd_xl, lpd_xxl
from orders.group_sizes import group_sizes, training_group_sizes
from performance import timing as benchmark
from performance.cost import num_parameters
from performance.timing import MOST_ROUNDS, NAMES, Effort, Record
from training.recipe import BETAS
from util import logs, streams
from util.errors import run

FAST_DTYPE = torch.bfloat16
PLAIN_DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
GRAD_CLIP = 3.0
WEIGHT_DECAY = 0.02
# Of the token cache that steps are fed from, at least.
NUM_IMAGES = 4096
# Title, number format and factor by key.
COLUMNS = {
    "row": ("row", "", 1),
    "batch_size": ("batch", "d", 1),
    "rounds": ("rounds", "d", 1),
    "dtype": ("type", "", 1),
    "fast_s": ("fast, ms", ".1f", 1e3),
    "images_per_s": ("images/s", ".2f", 1),
    "tokens_per_s": ("tokens/s", ".0f", 1),
    "flop_per_s": ("TFLOP/s", ".3g", 1e-12),
    "rate_share": ("of the rate", ".0%", 1),
    "products_share": ("products / fast", ".0%", 1),
    "waiting_share": ("waiting for data", ".2%", 1),
    "peak_bytes": ("peak, GiB", ".2f", 2**-30),
    "plain_dtype": ("plain type", "", 1),
    "plain_s": ("plain, ms", ".1f", 1e3),
    "ratio": ("plain / fast", ".2f", 1),
    "plain_peak_bytes": ("plain peak, GiB", ".2f", 2**-30),
    "first_steps_s": ("first steps, s", ".1f", 1),
}
NOTES = """\
fast: median optimiser step as training runs it: bfloat16 autocast, fused AdamW, on a GPU compiled
  blocks and sparse masks; each step draws its list of group sizes
plain: the same batches and lists; dense masks made at every step, eager, all logits at once,
  PyTorch's own dropout and unfused AdamW
tokens/s: 2N sequence tokens an image, N known ones and N queries
TFLOP/s: by the rule below, which counts the head for all 2N though only N reach it; of the rate:
  over the fastest of large matrix products in the same rounds and type
products: qkv, proj, fc1, fc2 and head alone, forward and backward, for the rows that are needed
waiting for data: share of the fast loop's time that the host asks a token cache for its next batch
peak: on a GPU of one step's network, optimiser and activations, on a CPU of the process so far
first steps: from a new network on, with compilation
"""
FORMULA = "operations of an image = 2N tokens x 6 x (block + head parameters)\n"


@dataclass(frozen=True)
class Row:
    """A network and how it is trained; `steps`: of the only list of group sizes, else all."""

    name: str
    build: Callable[[], LPD]
    batch_size: int
    steps: int | None = None


DEMO = dict(img_size=32, vqgan_stride=4, vqgan_vocab_size=256, class_num=10)
SMALL_ROWS = (
    Row("lpd_tiny_32", partial(lpd_tiny, **DEMO), 64, steps=12),
    Row("lpd_l_x2_256", partial(LPD, decoder_embed_dim=1024, decoder_depth=2), 8),
)
PUBLISHED_ROWS = (
    Row("lpd_l_256", lpd_l, 64),
    Row("lpd_xl_256", lpd_xl, 32),
    Row("lpd_xxl_256", lpd_xxl, 32),
    Row("lpd_l_512", partial(lpd_l, img_size=512), 16),
    Row("lpd_xl_512", partial(lpd_xl, img_size=512), 8),
)
ROWS = SMALL_ROWS + PUBLISHED_ROWS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    return benchmark.build_parser(
        "Time per training step, beside what this machine allows.",
        [row.name for row in ROWS],
        plain="step",
        quick="the small rows only",
    ).parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Measure, show the table and write it."""
    effort = benchmark.read_effort(args)
    keep = benchmark.result_file(args.output, effort.device)
    rows = SMALL_ROWS if args.quick or effort.device.type == "cpu" else PUBLISHED_ROWS
    if args.rows:
        rows = [row for row in ROWS if row.name in args.rows]

    def series(row: Row) -> Iterator[Record]:
        sizes = args.batch_sizes or [row.batch_size]
        with random_source(row, max(sizes), effort.device) as source:
            for size in sizes:
                names = {"row": row.name, "batch_size": size}
                yield names | Case(row, source, size, effort).measure(effort)

    named = {row.name: series(row) for row in rows}
    benchmark.show(named, keep, COLUMNS, f"{NOTES}\n{FORMULA}", formula=FORMULA)


@contextmanager
def random_source(row: Row, batch_size: int, device: torch.device) -> Iterator[CachedTokens]:
    """Make a token cache of random images for a network, which goes with the block."""
    with torch.device("meta"):
        model = row.build()
    grid, num_images = model.grid, max(NUM_IMAGES, (MOST_ROUNDS + 1) * batch_size)
    rng = np.random.default_rng(0)
    tokens = rng.integers(grid.vocab_size, size=(num_images, 2, grid.num_tokens))
    labels = rng.integers(model.class_num, size=num_images)
    classes = list(map(str, range(model.class_num)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shard = write_shard(folder, 0, tokens, labels, grid.vocab_size)
        write_index(folder, grid, "random", classes, [shard])
        yield CachedTokens(open_cache(folder), device)


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
        parameters = param_groups_weight_decay(self.model, WEIGHT_DECAY)
        # False would rule out PyTorch's default on a GPU, too: lists of tensors at a time.
        fused = None if plain else True
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=BETAS, fused=fused)

    def __call__(self, sizes: list[int], batch: Batch) -> Tensor:
        """Train on a batch and return its loss, detached."""
        self.optimizer.zero_grad(set_to_none=True)
        autocast = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast):
            loss = self._loss(sizes, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
        self.optimizer.step()
        return loss.detach()

    def _loss(self, sizes: list[int], batch: Batch) -> Tensor:
        tokens, labels, orders, drop = batch
        if not self.plain:
            return self.model(tokens, labels, sizes, orders, drop)
        # The network keeps its masks; here every step makes one.
        with patch.object(masks, "_mask", masks._mask.__wrapped__):
            logits = self.model.forward_logits(tokens, labels, sizes, orders, drop)
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens.gather(1, orders).flatten())


def bare_products(
    model: LPD, dtype: torch.dtype, batch_size: int
) -> Callable[[list[int], Batch], None]:
    """Return what makes the matrix products of a step, and nothing between them."""
    blocks = [(x.attn.qkv, x.attn.proj, x.mlp.fc1, x.mlp.fc2) for x in model.blocks]
    layers = [*itertools.chain.from_iterable(blocks), model.head]
    weights = [layer.weight.detach().to(dtype, copy=True) for layer in layers]
    num_tokens, device = model.grid.num_tokens, model.pos_embed.device
    # Inputs and gradients by width, enough for the longest sequences.
    rows = {
        width: torch.randn(2 * batch_size * num_tokens, width, device=device, dtype=dtype)
        for width in {width for weight in weights for width in weight.shape}
    }

    def multiply(sizes: list[int], batch: Batch) -> None:
        """Forward and backward, for the rows that a list of group sizes needs."""
        at_head = len(batch.labels) * num_tokens
        in_blocks = at_head + len(batch.labels) * (1 + num_tokens - sizes[-1])
        counts = [in_blocks] * (len(weights) - 1) + [at_head]
        work = list(zip(weights, counts, strict=True))
        for weight, count in work:
            F.linear(rows[weight.shape[1]][:count], weight)
        for weight, count in reversed(work):
            grad, x = (rows[width][:count] for width in weight.shape)
            grad @ weight
            grad.mT @ x

    return multiply


class Case:
    """One line of the table: a network at a batch size, its fast and plain steps warm.

    `calls` holds by name what takes the next part of the same work at every call.
    """

    def __init__(self, row: Row, source: CachedTokens, batch_size: int, effort: Effort) -> None:
        # Compiled networks refer to themselves: those of other cases are still there.
        torch.compiler.reset()
        gc.collect()
        self.batch_size, device = batch_size, effort.device
        lists = training_group_sizes(source.num_tokens)
        if row.steps is not None:
            lists = [group_sizes(source.num_tokens, row.steps)]
        draws = streams.uniforms("group sizes", 0, np.arange(MOST_ROUNDS), count=1)[:, 0]
        drawn = [lists[int(draw * len(lists))] for draw in draws]
        epoch = partial(
            *(epoch_batches, source),
            **dict(
                batch_size=batch_size, seed=0, flip_prob=0.5, label_drop_prob=0.1, device=device
            ),
        )
        with closing(epoch(0)) as batches:
            plan = list(zip(drawn, batches, strict=False))

        def warm_step(plain: bool) -> Step:
            step = Step(row.build, device, plain)
            # A GPU meets every list, and twice: a first step leaves the optimiser's state behind.
            for sizes in 2 * lists if device.type == "cuda" else drawn[:1]:
                step(sizes, plan[0][1])
            benchmark.wait_for(device)
            return step

        benchmark.reset_peak(device)
        started = time.perf_counter()
        fast = warm_step(plain=False)
        self.record: Record = {"dtype": NAMES[fast.dtype]}
        self.record["first_steps_s"] = time.perf_counter() - started
        with closing(epoch(1)) as batches:
            self.record["waiting_share"] = waiting_share(fast, batches, drawn, effort)
        self.record["peak_bytes"] = benchmark.peak_bytes(device)
        self.model = fast.model
        subjects: dict[str, Callable[..., object]] = {"fast": fast}
        if effort.plain:
            benchmark.reset_peak(device)
            others = benchmark.peak_bytes(device)
            subjects["plain"] = plain = warm_step(plain=True)
            self.record["plain_dtype"] = NAMES[plain.dtype]
            if device.type == "cuda":
                self.record["plain_peak_bytes"] = benchmark.peak_bytes(device) - others
        subjects["products"] = bare_products(fast.model, fast.dtype, batch_size)
        subjects["products"](*plan[0])

        def in_turn(subject: Callable[..., object]) -> Callable[[], object]:
            work = itertools.cycle(plan)
            return lambda: subject(*next(work))

        self.calls = {name: in_turn(subject) for name, subject in subjects.items()}

    def measure(self, effort: Effort) -> Record:
        """Time the calls, and large products in the same rounds."""
        large = benchmark.large_products(effort.device, FAST_DTYPE)
        products = {name: product for name, (product, _) in large.items()}
        median, times = benchmark.time_in_turn({**self.calls, **products}, effort)
        rate = max(work / median[name] for name, (_, work) in large.items())
        num_tokens = self.model.grid.num_tokens
        parameters = num_parameters(self.model.blocks) + num_parameters(self.model.head)
        operations = 2 * num_tokens * 6 * parameters
        images_per_s = self.batch_size / median["fast"]
        record = {
            **self.record,
            "rounds": len(times["fast"]),
            **{f"{name}_s": median[name] for name in self.calls},
            "images_per_s": images_per_s,
            "tokens_per_s": images_per_s * 2 * num_tokens,
            "flop_per_s": images_per_s * operations,
            "rate_share": images_per_s * operations / rate,
            "products_share": median["products"] / median["fast"],
            "counted": {
                **dict(num_tokens=num_tokens, parameters=parameters),
                **dict(operations_per_image=operations, rate=rate),
            },
            "times_s": times,
        }
        if "plain" in median:
            record["ratio"] = median["plain"] / median["fast"]
        return record


def waiting_share(
    step: Step, batches: Iterator[Batch], lists: Sequence[list[int]], effort: Effort
) -> float:
    """Measure the share of a training loop's time that goes by until the next batch is there.

    The device is idle then. An epoch's first batch, which nothing could prepare, does not count.
    """
    batch, waited = next(batches), 0.0
    started = time.perf_counter()
    for done, sizes in enumerate(lists):
        if done >= effort.rounds and time.perf_counter() - started >= effort.seconds:
            break
        step(sizes, batch)
        benchmark.wait_for(effort.device)
        asked = time.perf_counter()
        batch = next(batches)
        benchmark.wait_for(effort.device)
        waited += time.perf_counter() - asked
    return waited / (time.perf_counter() - started)


if __name__ == "__main__":
    logs.setup()
    run(lambda: main(parse_args()))
