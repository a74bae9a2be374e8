"""One line of the training benchmark: a network at a batch size, its two steps and its data."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from models import masks
from models.lpd import LPD
from models.transformer import Dropout
from orders.group_sizes import group_sizes, training_group_sizes
from util import streams
from util.data.cache_writer import write_index, write_shard
from util.data.training_data import Batch, CachedTokens, epoch_batches
from util.performance import benchmark
from util.runs.training import BETAS

NAMES = {torch.bfloat16: "bf16", torch.float32: "f32"}
FAST_DTYPE = torch.bfloat16
PLAIN_DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
GRAD_CLIP = 3.0
WEIGHT_DECAY = 0.02
# Steps of a kind that are timed at most.
MOST_ROUNDS = 30


@dataclass(frozen=True)
class Row:
    """A network and how it is trained.

    Attributes:
        name: as `--rows` takes it.
        build: makes the network.
        batch_size: images per step unless the command line says otherwise.
        steps: of the only list of group sizes; None for the lists that training draws from.
    """

    name: str
    build: Callable[[], LPD]
    batch_size: int
    steps: int | None = None


@dataclass(frozen=True)
class Effort:
    """What is measured, and how often.

    Attributes:
        device: where.
        batch_sizes: tried in turn until one does not fit; None for the row's own.
        plain: measure the plain step, too.
        rounds: at least so many, whatever they take.
        seconds: after these no round begins beyond the least number.
    """

    device: torch.device
    batch_sizes: Sequence[int] | None = None
    plain: bool = True
    rounds: int = 3
    seconds: float = 10.0


def write_tokens(folder: Path, row: Row, num_images: int) -> None:
    """A token cache of random images for a network."""
    with torch.device("meta"):
        model = row.build()
    rng = np.random.default_rng(0)
    grid, classes = model.grid, [str(number) for number in range(model.class_num)]
    tokens = rng.integers(grid.vocab_size, size=(num_images, 2, grid.num_tokens))
    labels = rng.integers(len(classes), size=num_images)
    shard = write_shard(folder, 0, tokens, labels, grid.vocab_size)
    write_index(folder, grid, "random", classes, [shard])


class Step:
    """One optimiser step of a network of its own; steps of equal rows start from equal weights.

    Args:
        build: makes the network.
        device: where it is trained.
        plain: as the method is plainly written, not as training runs it.
    """

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
        """Train on a batch; its loss, detached."""
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
        with patch.object(masks, "_dense_mask", masks._dense_mask.__wrapped__):
            logits = self.model.forward_logits(tokens, labels, sizes, orders, drop)
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens.gather(1, orders).flatten())


class Products:
    """The matrix products of a step on weights of its own, and nothing between them."""

    def __init__(self, model: LPD, dtype: torch.dtype, batch_size: int) -> None:
        blocks = [(x.attn.qkv, x.attn.proj, x.mlp.fc1, x.mlp.fc2) for x in model.blocks]
        layers = [*itertools.chain.from_iterable(blocks), model.head]
        self.weights = [layer.weight.detach().to(dtype, copy=True) for layer in layers]
        self.num_tokens = model.grid.num_tokens
        # Inputs and gradients by width, enough for the longest sequences.
        self.rows = {
            width: torch.randn(
                2 * batch_size * self.num_tokens, width, device=model.pos_embed.device, dtype=dtype
            )
            for width in {width for weight in self.weights for width in weight.shape}
        }

    def __call__(self, sizes: list[int], batch: Batch) -> None:
        """Forward and backward for the rows that a list of group sizes needs."""
        at_head = len(batch.labels) * self.num_tokens
        in_blocks = at_head + len(batch.labels) * (1 + self.num_tokens - sizes[-1])
        counts = [in_blocks] * (len(self.weights) - 1) + [at_head]
        work = list(zip(self.weights, counts, strict=True))
        for weight, count in work:
            F.linear(self.rows[weight.shape[1]][:count], weight)
        for weight, count in reversed(work):
            grad, x = (self.rows[width][:count] for width in weight.shape)
            grad @ weight
            grad.mT @ x


class Case:
    """One line of the table: a network at a batch size, its steps warm.

    Attributes:
        model: of the fast step.
        plan: batches and group sizes of the steps to time.
        subjects: the steps "fast" and, where it is asked for, "plain", and the "products".
        record: types, peak memory, the share of time that waits for data, the first steps' time.
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
        shares = dict(flip_prob=0.5, label_drop_prob=0.1)
        epoch = partial(
            epoch_batches, source, batch_size=batch_size, seed=0, device=device, **shares
        )
        with closing(epoch(0)) as batches:
            self.plan = list(zip(drawn, batches, strict=False))

        def warm_step(plain: bool) -> Step:
            step = Step(row.build, device, plain)
            # A GPU meets every list, and twice: a first step leaves the optimiser's state behind.
            for sizes in 2 * lists if device.type == "cuda" else drawn[:1]:
                step(sizes, self.plan[0][1])
            benchmark.wait_for(device)
            return step

        benchmark.reset_peak(device)
        started = time.perf_counter()
        fast = warm_step(plain=False)
        self.record: dict[str, Any] = {"dtype": NAMES[fast.dtype]}
        self.record["first_steps_s"] = time.perf_counter() - started
        with closing(epoch(1)) as batches:
            self.record["waiting_share"] = waiting_share(fast, batches, drawn, effort)
        self.record["peak_bytes"] = benchmark.peak_bytes(device)
        self.model = fast.model
        self.subjects: dict[str, Callable[..., object]] = {"fast": fast}
        if effort.plain:
            benchmark.reset_peak(device)
            others = torch.cuda.memory_allocated(device) if device.type == "cuda" else None
            plain = warm_step(plain=True)
            self.record["plain_dtype"] = NAMES[plain.dtype]
            if others is not None:
                self.record["plain_peak_bytes"] = benchmark.peak_bytes(device) - others
            self.subjects["plain"] = plain
        self.subjects["products"] = Products(fast.model, fast.dtype, batch_size)
        self.subjects["products"](*self.plan[0])

    def in_turn(self, name: str) -> Callable[[], object]:
        """A function that works on the next part of the plan at every call, round and round."""
        work, subject = itertools.cycle(self.plan), self.subjects[name]
        return lambda: subject(*next(work))


def waiting_share(
    step: Step, batches: Iterator[Batch], lists: Sequence[list[int]], effort: Effort
) -> float:
    """Share of a training loop's time that goes by until the next batch is there.

    The device is idle then: the loop lets it finish before it asks. An epoch's first batch, which
    nothing could prepare, is not counted.
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


def counted_parameters(model: LPD) -> int:
    """Of blocks and head."""
    return sum(x.numel() for x in (*model.blocks.parameters(), *model.head.parameters()))


def operations_per_image(model: LPD) -> int:
    """Additions and multiplications of one image's training, by `FORMULA`."""
    return 2 * model.grid.num_tokens * 6 * counted_parameters(model)
