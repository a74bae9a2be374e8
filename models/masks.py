"""The group-causal mask: one forward pass stands for all decoding steps (method section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

# A training run draws from 9 group-size lists at 256 px and from 14 at 512; its own may be more.
_MASKS_KEPT = 128


def group_causal_mask(
    group_sizes: Sequence[int],
    device: torch.device | str | None = None,
    blind_queries: bool = False,
) -> torch.Tensor:
    """Who may look at whom in `[class | tokens of groups 1..K-1 | queries of groups 1..K]`.

    Args:
        group_sizes: K positive sizes that sum to N.
        device: where to make the mask.
        blind_queries: the queries of a group do not see one another (an ablation).

    Returns:
        (L, L) bool with L = 1 + (N - group_sizes[-1]) + N; row i may attend to column j where True.
        Made once: not to be written to.
    """
    return _dense_mask(tuple(group_sizes), torch.device(device or "cpu"), blind_queries)


def group_causal_block_mask(
    group_sizes: Sequence[int], device: torch.device, blind_queries: bool = False
) -> BlockMask:
    """The same as a sparse mask for `[class | first N - 1 tokens | N queries]`; made once.

    One length, 2 * N, lets a compiled network serve all lists of group sizes. Nobody looks at the
    tokens of the last group that it adds to the context.
    """
    return _block_mask(tuple(group_sizes), device, blind_queries)


@lru_cache(_MASKS_KEPT)
def _dense_mask(
    group_sizes: tuple[int, ...], device: torch.device, blind_queries: bool
) -> torch.Tensor:
    groups = _groups(group_sizes, device)
    context, queries = groups[: len(groups) - group_sizes[-1]], groups[1:]
    group = torch.cat([context, queries])
    place = torch.arange(len(group), device=device)
    is_query = place >= len(context)
    company = place if blind_queries else group
    queries_meet = company[:, None] == company
    return _may_see(group[:, None], is_query[:, None], group, is_query, queries_meet)


@lru_cache(_MASKS_KEPT)
def _block_mask(
    group_sizes: tuple[int, ...], device: torch.device, blind_queries: bool
) -> BlockMask:
    groups = _groups(group_sizes, device)
    group = torch.cat([groups[:-1], groups[1:]])
    num_context = len(groups) - 1

    def may_see(
        batch: torch.Tensor, head: torch.Tensor, row: torch.Tensor, column: torch.Tensor
    ) -> torch.Tensor:
        queries_meet = row == column if blind_queries else group[row] == group[column]
        return _may_see(
            group[row], row >= num_context, group[column], column >= num_context, queries_meet
        )

    length = len(group)
    return create_block_mask(may_see, None, None, length, length, device=device)


def _groups(group_sizes: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Group of the class token, 0, and of the N tokens: (1 + N,)."""
    sizes = torch.tensor((1, *group_sizes), device=device)
    return torch.arange(len(sizes), device=device).repeat_interleave(sizes)


def _may_see(
    group: torch.Tensor,
    is_query: torch.Tensor,
    seen: torch.Tensor,
    seen_is_query: torch.Tensor,
    queries_meet: torch.Tensor,
) -> torch.Tensor:
    """The rule: whether a token of `group` may look at one of group `seen`; broadcasts.

    If both are queries, `queries_meet` decides.
    """
    # A query sees the context of earlier groups only; a context token also that of its own.
    sees_context = ~seen_is_query & torch.where(is_query, seen < group, seen <= group)
    sees_query = is_query & seen_is_query & queries_meet
    return sees_context | sees_query
