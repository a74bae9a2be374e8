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
) -> torch.Tensor:
    """Logits of every decoding step, (B, N, V) in generation order, as of `LPD.forward_logits`."""
    plan = GenerationPlan.build(orders, sizes, tokens.shape[1])
    cache = network.new_cache(len(tokens))
    context, logits = network.embed_class(labels, len(tokens)), []
    for start, stop in plan.steps():
        positions = orders[:, start:stop]
        logits.append(network.decode_step(context, network.embed_queries(positions), cache))
        context = network.embed_tokens(tokens.gather(1, positions), positions)
    return torch.cat(logits, dim=1)
