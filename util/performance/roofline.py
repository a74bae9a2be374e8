"""The least time work can take on a processor: by the bytes it moves or by what it computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

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
