"""The group-causal mask: one forward pass stands for all decoding steps (method section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def group_causal_mask(
    group_sizes: Sequence[int], device: torch.device | str | None = None
) -> torch.Tensor:
    """Who may look at whom in `[class | tokens of groups 1..K-1 | queries of groups 1..K]`.

    Args:
        group_sizes: K positive sizes that sum to N.
        device: where the mask is made.

    Returns:
        (L, L) bool with L = 1 + (N - group_sizes[-1]) + N; row i may attend to column j where True.
    """
    sizes = torch.tensor(group_sizes, device=device)
    groups = torch.arange(1, len(group_sizes) + 1, device=device)
    class_group = torch.zeros(1, dtype=groups.dtype, device=device)
    context = torch.cat([class_group, groups[:-1].repeat_interleave(sizes[:-1])])
    queries = groups.repeat_interleave(sizes)
    group = torch.cat([context, queries])
    is_query = torch.arange(len(group), device=device) >= len(context)

    looker, seen = group[:, None], group[None, :]
    # A query sees the context of earlier groups only; a context token also that of its own.
    sees_context = ~is_query[None, :] & torch.where(
        is_query[:, None], seen < looker, seen <= looker
    )
    sees_query = is_query[:, None] & is_query[None, :] & (seen == looker)
    return sees_context | sees_query
