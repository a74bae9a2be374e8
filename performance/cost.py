"""The least time work can take on a processor: by the bytes it moves or by what it computes."""

import itertools
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.lpd import LPD
from tokenizers.vq_model import VQModel

FORMULA = """\
floor = sum over decoding steps of max(bytes / bandwidth, operations / rate)
        + max(bytes / bandwidth, operations / rate) of the VQ decoder
bytes of a step: all weights of blocks and head once, and the stored keys and values once
operations of a step: 2 x rows x block parameters + 2 x queries x head parameters
                      + 4 x width x depth x pairs of attention
VQ decoder: convolutions and products as counted; its weights once, no activations
"""


class Rates(NamedTuple):
    """What a processor does at best."""

    bandwidth: float  # bytes a second of a large copy
    rate: float  # operations a second of a large product


class Work(NamedTuple):
    """Bytes moved from or to memory, and additions and multiplications."""

    bytes: float
    operations: float

    def seconds(self, rates: Rates) -> float:
        """Return the least time: moving and computing overlap at best, so the slower counts."""
        return max(self.bytes / rates.bandwidth, self.operations / rates.rate)


def num_parameters(module: torch.nn.Module, matrices: bool = False) -> int:
    """Count the numbers in all weights, or in matrices only: what each row is multiplied with."""
    return sum(x.numel() for x in module.parameters() if x.ndim == 2 or not matrices)


def step_rows(group_sizes: Sequence[int]) -> list[tuple[int, int]]:
    """List new context tokens and queries of one sequence by step; first the class token."""
    return list(itertools.pairwise((1, *group_sizes)))


def decoding_work(
    model: LPD, group_sizes: Sequence[int], sequences: int, number_bytes: int
) -> list[Work]:
    """List the work of each decoding step (method section 4) of `sequences` side by side.

    These are the images, twice under guidance; `number_bytes` those of a weight, key or value.
    """
    width, depth = model.pos_embed.shape[-1], len(model.blocks)
    blocks, head = num_parameters(model.blocks), model.head.weight.numel()
    works, stored = [], 0
    for context, queries in step_rows(group_sizes):
        known = stored + context
        pairs = context * known + queries * (known + queries)
        products = 2 * (context + queries) * blocks + 2 * queries * head
        cache = 2 * sequences * stored * depth * width
        moved = (blocks + head + cache) * number_bytes
        works.append(Work(moved, sequences * (products + 4 * width * depth * pairs)))
        stored = known
    return works


def training_cost(
    model: LPD, lists: Sequence[Sequence[int]], batch_size: int, number_bytes: int, sparse: bool
) -> Work:
    """Count one image of a step, forward, backward and AdamW; the mean over lists of group sizes.

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

    # In float32 the backward pass writes the gradient, and AdamW reads it and reads and writes the
    # weight and two moments.
    moved = num_parameters(model) * (2 * number_bytes + 4 * (1 + 1 + 3 * 2))
    return Work(moved / batch_size, statistics.mean(map(operations, lists)))


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
