"""A step of training, as training runs it and as it is plainly written, beside its products."""

import gc
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from dataset.batches import Batch, CachedTokens, epoch_batches
from dataset.token_cache import open_cache
from dataset.write_cache import write_index, write_shard
from models.cpu import Dropout
from models.lpd import LPD
from models.masks import group_causal_mask
from orders.group_sizes import group_sizes, training_group_sizes
from performance import timing
from performance.cost import num_parameters
from performance.timing import MOST_ROUNDS, NAMES, Calls, Effort, Record
from training.recipe import BETAS


class Step:
    """One optimiser step of a network of its own, as training runs it or plainly written."""

    def __init__(self, build: Callable[[], LPD], device: torch.device, plain: bool) -> None:
        torch.manual_seed(0)
        self.device, self.plain = device, plain
        self.dtype = torch.float32 if plain and device.type == "cpu" else torch.bfloat16
        self.model = timing.random_weights(build, device).train().requires_grad_(True)
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
    batch, sizes = next(batches), iter(drawn)  # the first, which nothing could prepare, is free

    def fetch() -> None:
        nonlocal batch
        batch = next(batches)

    times = timing.time_in_turn({"step": lambda: step(next(sizes), batch), "wait": fetch}, effort)
    waited = sum(times["wait"])
    return waited / (waited + sum(times["step"]))


def measure(
    build: Callable[[], LPD], batch_size: int, effort: Effort, steps: int | None = None
) -> tuple[Record, Calls]:
    """Time a network's steps and what they are compared with; return record and warm calls.

    `steps`: of the only list of group sizes, else all of training are drawn from.
    """
    # Compiled networks refer to themselves: those measured before are still there.
    torch.compiler.reset()
    gc.collect()
    device = effort.device
    fast = Step(build, device, plain=False)
    num_tokens = fast.model.grid.num_tokens
    lists = [group_sizes(num_tokens, steps)] if steps else training_group_sizes(num_tokens)
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
        record = timing.warm_up(partial(first_steps, fast), device)
        record["waiting_share"] = waiting_share(fast, batches, drawn, effort)
    record["dtype"] = NAMES[fast.dtype]
    multiply = timing.bare_products(fast.model, fast.dtype, 2 * batch_size * num_tokens)

    def products(sizes: list[int], batch: Batch) -> None:
        at_head = batch.tokens.numel()
        in_blocks = at_head + len(batch.tokens) * (1 + num_tokens - sizes[-1])
        multiply(in_blocks, at_head, backward=True)

    products(drawn[0], batch)
    calls = {"fast": in_turn(fast), "products": in_turn(products)}
    if effort.plain_rounds > 0:
        plain = Step(build, device, plain=True)
        first_steps(plain)
        record["plain_dtype"], calls["plain"] = NAMES[plain.dtype], in_turn(plain)
    # The machine's rate drifts, too: it is measured in the same rounds.
    large = timing.large_products(device, fast.dtype)
    rounds = calls | {name: product for name, (product, _) in large.items()}
    record |= timing.compare(rounds, batch_size, effort)
    rate = max(operations / record[f"{name}_s"] for name, (_, operations) in large.items())
    parameters = num_parameters(fast.model.blocks) + num_parameters(fast.model.head)
    tokens_per_s = record["images_per_s"] * 2 * num_tokens
    flop_per_s = tokens_per_s * 6 * parameters
    record |= dict(tokens_per_s=tokens_per_s, flop_per_s=flop_per_s, rate=rate)
    shares = dict(
        rate_share=flop_per_s / rate, products_share=record["products_s"] / record["fast_s"]
    )
    return record | shares, calls
