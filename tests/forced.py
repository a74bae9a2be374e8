"""Cached decoding with the true tokens fed back."""

from collections.abc import Sequence

import torch

from models.fast_network import FastNetwork
from models.lpd import LPD
from orders.plan import GenerationPlan


@torch.no_grad()
def forced_logits(
    network: LPD | FastNetwork,
    tokens: torch.Tensor,
    labels: torch.Tensor | None,
    sizes: Sequence[int],
    orders: torch.Tensor,
    num_known: int = 0,
) -> torch.Tensor:
    """Logits of every decoding step, generation order, as of `LPD.forward_logits`.

    Returns:
        (B, N - num_known, V).
    """
    plan = GenerationPlan.build(orders, sizes, tokens.shape[1], num_known)
    cache = network.new_cache(len(tokens))
    context, logits = network.embed_class(labels, len(tokens)), []
    if num_known:
        positions = orders[:, :num_known]
        known = network.embed_tokens(tokens.gather(1, positions), positions)
        context = torch.cat([context, known], dim=1)
    for start, stop in plan.steps():
        positions = orders[:, start:stop]
        logits.append(network.decode_step(context, network.embed_queries(positions), cache))
        context = network.embed_tokens(tokens.gather(1, positions), positions)
    return torch.cat(logits, dim=1)
