"""The group-causal mask: one forward pass stands for all decoding steps (method section 3)."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


# A training run draws from 9 group-size lists at 256 px and from 14 at 512; its own may be more.
@lru_cache(128)
def group_causal_mask(
    group_sizes: tuple[int, ...],
    device: torch.device | str | None = None,
    blind_queries: bool = False,
    sparse: bool = False,
) -> Tensor | BlockMask:
    """Say who may look at whom in `[class | tokens of groups 1..K-1 | queries of groups 1..K]`.

    (L, L) bool with L = 1 + (N - group_sizes[-1]) + N: row i may attend to column j where True.
    With `blind_queries` (an ablation) those of a group do not see one another. The sparse form has
    the tokens of the last group as well, at which nobody looks: one length, 2 * N, lets a compiled
    network serve all lists. Made once: not to be written to.
    """
    # The group of the class token, 0, and of each of the N tokens.
    groups = torch.arange(1 + len(group_sizes), device=device)
    groups = groups.repeat_interleave(torch.tensor((1, *group_sizes), device=device))
    num_context = len(groups) - (1 if sparse else group_sizes[-1])
    group = torch.cat([groups[:num_context], groups[1:]])
    if not sparse:
        place = torch.arange(len(group), device=device)
        return _may_see(place[:, None], place, group, num_context, blind_queries)

    def may_see(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return _may_see(row, column, group, num_context, blind_queries)

    return create_block_mask(may_see, None, None, len(group), len(group), device=group.device)


def _may_see(row: Tensor, column: Tensor, group: Tensor, num_context: int, blind: bool) -> Tensor:
    """The rule: whether the token at place `row` may look at the one at `column`; broadcasts.

    `group` is that of each place (L,); the first `num_context` are context, the others queries.
    """
    is_query, seen_is_query = row >= num_context, column >= num_context
    mine, seen = group[row], group[column]
    # A query sees the context of earlier groups only; a context token also that of its own.
    sees_context = ~seen_is_query & torch.where(is_query, seen < mine, seen <= mine)
    queries_meet = row == column if blind else mine == seen
    return sees_context | is_query & seen_is_query & queries_meet
