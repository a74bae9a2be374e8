"""The least time work can take on a processor: by the bytes it moves or by what it computes."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.lpd import LPD
from tokenizers.vq_model import VQModel

# Training keeps weights, gradients and AdamW's two moments in float32: the backward pass writes the
# gradient, and the step reads it and reads and writes the other three.
_OPTIMIZER_BYTES = 4 * (1 + 1 + 3 * 2)

FORMULA = (
    "floor = sum over decoding steps of max(bytes / bandwidth, operations / rate)\n"
    "        + max(bytes / bandwidth, operations / rate) of the VQ decoder\n"
    "bytes of a step: all weights of blocks and head once, and the stored keys and values once\n"
    "operations of a step: 2 x rows x block parameters + 2 x queries x head parameters\n"
    "                      + 4 x width x depth x pairs of attention\n"
    "VQ decoder: convolutions and products as counted; its weights once, no activations\n"
)


@dataclass(frozen=True)
class Rates:
    """What a processor does at best: bytes a second of a large copy, operations of a product."""

    bandwidth: float
    rate: float


@dataclass(frozen=True)
class Work:
    """Bytes moved from or to memory, and additions and multiplications."""

    bytes: float
    operations: float

    def seconds(self, rates: Rates) -> float:
        """Return the least time: moving and computing overlap at best, so the slower counts."""
        return max(self.bytes / rates.bandwidth, self.operations / rates.rate)


def total(works: Iterable[Work]) -> Work:
    """Add up."""
    works = list(works)
    return Work(sum(work.bytes for work in works), sum(work.operations for work in works))


def num_parameters(module: torch.nn.Module, matrices: bool = False) -> int:
    """Count the numbers in all weights, or in matrices only: what each row is multiplied with."""
    return sum(x.numel() for x in module.parameters() if x.ndim == 2 or not matrices)


@dataclass(frozen=True)
class Generation:
    """The sizes of parallel decoding (method section 4)."""

    width: int
    depth: int
    block_parameters: int
    head_parameters: int
    group_sizes: tuple[int, ...]
    sequences: int  # decoded side by side: the images, twice under guidance
    number_bytes: int  # of a weight, key or value

    @classmethod
    def of(
        cls, model: LPD, group_sizes: Sequence[int], sequences: int, number_bytes: int
    ) -> Generation:
        """Read the sizes off a network."""
        sizes = (model.pos_embed.shape[-1], len(model.blocks), num_parameters(model.blocks))
        return cls(*sizes, model.head.weight.numel(), tuple(group_sizes), sequences, number_bytes)

    def step_rows(self) -> list[tuple[int, int]]:
        """List new context tokens and queries of one sequence by step; first the class token."""
        return list(itertools.pairwise((1, *self.group_sizes)))

    def steps(self) -> list[Work]:
        """List the work of each step, for all sequences."""
        works, stored = [], 0
        weights = (self.block_parameters + self.head_parameters) * self.number_bytes
        for context, queries in self.step_rows():
            known = stored + context
            pairs = context * known + queries * (known + queries)
            per_sequence = (
                2 * (context + queries) * self.block_parameters
                + 2 * queries * self.head_parameters
                + 4 * self.width * self.depth * pairs
            )
            cache = 2 * self.sequences * stored * self.depth * self.width * self.number_bytes
            works.append(Work(weights + cache, self.sequences * per_sequence))
            stored = known
        return works


def sampling_cost(
    model: LPD, group_sizes: Sequence[int], guided: bool, batch_size: int, number_bytes: int
) -> Work:
    """Count one image among `batch_size`: weights and the cache are read at every step."""
    sequences = batch_size * (2 if guided else 1)
    work = total(Generation.of(model, group_sizes, sequences, number_bytes).steps())
    return Work(work.bytes / batch_size, work.operations / batch_size)


def training_cost(
    model: LPD,
    group_size_lists: Sequence[Sequence[int]],
    batch_size: int,
    number_bytes: int,
    sparse: bool,
) -> Work:
    """Count one image of a step, forward, backward and AdamW; the mean over the lists.

    The backward pass does twice the products of the forward pass, in the attention two and a half
    times (it computes the scores again). `sparse`: attend only to what may be seen, not to the
    whole square of a dense mask.
    """
    width, depth, tokens = model.pos_embed.shape[-1], len(model.blocks), model.grid.num_tokens
    blocks, head = num_parameters(model.blocks, matrices=True), model.head.weight.numel()

    def operations(sizes: Sequence[int]) -> int:
        rows = 1 + (tokens - sizes[-1]) + tokens
        pairs = visible_pairs(sizes) if sparse else rows**2
        return 3 * 2 * (rows * blocks + tokens * head) + 14 * width * depth * pairs

    moved = num_parameters(model) * (2 * number_bytes + _OPTIMIZER_BYTES)
    return Work(moved / batch_size, statistics.mean(map(operations, group_size_lists)))


def visible_pairs(group_sizes: Sequence[int]) -> int:
    """Count the open places of the group-causal mask (method section 3)."""
    pairs = known = 1  # the class token sees itself
    for size in group_sizes:
        known += size
        pairs += 2 * size * known  # as queries and as context: what came before and one another
    return pairs - group_sizes[-1] * known  # the last group is never context


def tokenizer_cost(tokenizer: VQModel, num_tokens: int, number_bytes: int) -> dict[str, Work]:
    """Count `encoder` and `decoder` for one image of N tokens, as PyTorch counts operations."""
    side = round(num_tokens**0.5) * tokenizer.stride
    with torch.device("meta"):
        same = VQModel(**tokenizer.config).eval()
        codes = torch.zeros(1, num_tokens, dtype=torch.int64)
        image = torch.zeros(1, 3, side, side)
    costs = {}
    for name, call, x in (("encoder", same.encode, image), ("decoder", same.decode_code, codes)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call(x)
        weights = num_parameters(getattr(same, name))
        costs[name] = Work(weights * number_bytes, counter.get_total_flops())
    return costs
