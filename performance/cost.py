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


def product_parameters(module: torch.nn.Module) -> int:
    """Numbers in the matrices of a module: what each row is multiplied with."""
    return sum(weight.numel() for weight in module.parameters() if weight.ndim == 2)


def generation_of(
    model: LPD, group_sizes: Sequence[int], sequences: int, number_bytes: int
) -> Generation:
    """The sizes of parallel decoding with a network.

    Args:
        model: only its shapes count.
        group_sizes: tokens per step.
        sequences: decoded side by side: the images, twice under guidance.
        number_bytes: size of a weight, key or value.
    """
    return Generation(
        width=model.pos_embed.shape[-1],
        depth=len(model.blocks),
        block_parameters=sum(weight.numel() for weight in model.blocks.parameters()),
        head_parameters=model.head.weight.numel(),
        group_sizes=tuple(group_sizes),
        sequences=sequences,
        number_bytes=number_bytes,
    )


def sampling_cost(
    model: LPD, group_sizes: Sequence[int], guided: bool, batch_size: int, number_bytes: int
) -> Work:
    """Of one image among `batch_size`: weights and stored keys and values, read at every step."""
    sequences = batch_size * (2 if guided else 1)
    work = total(generation_of(model, group_sizes, sequences, number_bytes).steps())
    return Work(work.bytes / batch_size, work.operations / batch_size)


def training_cost(
    model: LPD,
    group_size_lists: Sequence[Sequence[int]],
    batch_size: int,
    number_bytes: int,
    sparse: bool,
) -> Work:
    """Of one image of a step, forward, backward and AdamW; the mean over the lists.

    The backward pass does twice the products of the forward pass, in the attention two and a half
    times (it computes the scores again).

    Args:
        model: only its shapes count.
        group_size_lists: the training set.
        batch_size: images of the step on one processor.
        number_bytes: size of a weight where it is multiplied with.
        sparse: attend only to what may be seen, not to the whole square of a dense mask.
    """
    width, depth, tokens = model.pos_embed.shape[-1], len(model.blocks), model.grid.num_tokens
    blocks, head = product_parameters(model.blocks), model.head.weight.numel()

    def operations(sizes: Sequence[int]) -> int:
        rows = 1 + (tokens - sizes[-1]) + tokens
        pairs = visible_pairs(sizes) if sparse else rows**2
        return 3 * 2 * (rows * blocks + tokens * head) + 14 * width * depth * pairs

    parameters = sum(weight.numel() for weight in model.parameters())
    moved = parameters * (2 * number_bytes + _OPTIMIZER_BYTES)
    return Work(moved / batch_size, statistics.mean(map(operations, group_size_lists)))


def visible_pairs(group_sizes: Sequence[int]) -> int:
    """How many places of the group-causal mask (method section 3) are open."""
    pairs, known = 1, 1  # the class token sees itself
    for number, size in enumerate(group_sizes, start=1):
        pairs += size * (known + size)  # queries: the earlier context and one another
        if number < len(group_sizes):
            pairs += size * (known + size)  # as context: likewise
        known += size
    return pairs


def tokenizer_cost(tokenizer: VQModel, num_tokens: int, number_bytes: int) -> dict[str, Work]:
    """`encoder` and `decoder`, for one image at a time, as PyTorch counts the operations.

    Args:
        tokenizer: only its configuration counts.
        num_tokens: N.
        number_bytes: size of a weight.
    """
    side = round(num_tokens**0.5) * tokenizer.stride
    with torch.device("meta"):
        same = VQModel(**tokenizer.config).eval()
        codes = torch.zeros(1, num_tokens, dtype=torch.int64)
        image = torch.zeros(1, 3, side, side)
    subjects = {
        "encoder": (same.encoder, lambda: same.encode(image)),
        "decoder": (same.decoder, lambda: same.decode_code(codes)),
    }
    costs = {}
    for name, (module, work) in subjects.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            work()
        weights = sum(weight.numel() for weight in module.parameters())
        costs[name] = Work(weights * number_bytes, counter.get_total_flops())
    return costs


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
    """What a processor was seen to do at best.

    Attributes:
        bandwidth: bytes read and written per second by a large copy.
        rate: additions and multiplications per second of a large matrix product.
    """

    bandwidth: float
    rate: float


@dataclass(frozen=True)
class Work:
    """What has to be done in one go.

    Attributes:
        bytes: moved from or to memory.
        operations: additions and multiplications.
    """

    bytes: float
    operations: float

    def seconds(self, rates: Rates) -> float:
        """Moving and computing overlap at best, so that the slower one counts."""
        return max(self.bytes / rates.bandwidth, self.operations / rates.rate)


def total(works: Iterable[Work]) -> Work:
    """Their sums."""
    works = list(works)
    return Work(sum(work.bytes for work in works), sum(work.operations for work in works))


@dataclass(frozen=True)
class Generation:
    """The sizes of parallel decoding (method section 4).

    Attributes:
        width: of the transformer, C.
        depth: number of blocks.
        block_parameters: of all blocks together.
        head_parameters: of the output layer.
        group_sizes: tokens per step.
        sequences: decoded side by side: the images, twice under guidance.
        number_bytes: size of a weight, key or value.
    """

    width: int
    depth: int
    block_parameters: int
    head_parameters: int
    group_sizes: tuple[int, ...]
    sequences: int
    number_bytes: int

    def step_rows(self) -> list[tuple[int, int]]:
        """New context tokens and queries of one sequence at each step; first the class token."""
        return list(itertools.pairwise((1, *self.group_sizes)))

    def steps(self) -> list[Work]:
        """The work of each step, for all sequences."""
        works = []
        stored = 0
        for context, queries in self.step_rows():
            known = stored + context
            pairs = context * known + queries * (known + queries)
            per_sequence = (
                2 * (context + queries) * self.block_parameters
                + 2 * queries * self.head_parameters
                + 4 * self.width * self.depth * pairs
            )
            weights = (self.block_parameters + self.head_parameters) * self.number_bytes
            works.append(Work(weights + self._cache(stored), self.sequences * per_sequence))
            stored = known
        return works

    @property
    def cache_bytes(self) -> int:
        """Keys and values of the class token and of all tokens."""
        return self._cache(1 + sum(self.group_sizes))

    @property
    def activation_bytes(self) -> int:
        """The widest moment of any step.

        In a block this is the stream (float32) beside what enters and leaves the MLP's hidden
        layer; behind the head, the logits and their probabilities, both float32.
        """
        vocabulary = self.head_parameters // self.width
        rows = max(context + queries for context, queries in self.step_rows())
        in_block = rows * self.width * (4 + 5 * self.number_bytes)
        behind_head = 2 * max(self.group_sizes) * vocabulary * 4
        return self.sequences * max(in_block, behind_head)

    def _cache(self, tokens: int) -> int:
        return 2 * self.sequences * self.depth * self.width * self.number_bytes * tokens
