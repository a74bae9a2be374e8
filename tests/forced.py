"""Cached decoding with the true tokens fed back."""

from collections.abc import Sequence

import numpy as np
import torch

from models.fast import FastNetwork
from models.lpd import LPD
from models.sampling import SamplingSettings, guidance_scales, pick
from orders.plan import GenerationPlan
from util import streams

# By how much logits of two kernels may differ, and how often that is tried.
ROUNDING, TRIES = 2e-5, 64


@torch.no_grad()
def forced_logits(
    network: LPD | FastNetwork,
    tokens: torch.Tensor,
    labels: torch.Tensor | None,
    sizes: Sequence[int],
    orders: torch.Tensor,
    num_known: int = 0,
) -> torch.Tensor:
    """Logits of every decoding step, as of `LPD.forward_logits`: (B, N - num_known, V)."""
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


def assert_same_but_for_ties(
    fast: torch.Tensor,
    plain: torch.Tensor,
    model: LPD,
    labels: torch.Tensor | None,
    orders: torch.Tensor | np.ndarray,
    sizes: Sequence[int],
    seed: int = 0,
    **sampling: float | str,
) -> None:
    """Two kernels gave the same tokens (B, N), except where rounding decides between two codes.

    One in some 100,000 draws falls that close to the border between two codes, and from there on
    an image is another. So the first step in which one differs must give what the plain sampler's
    logits give as well when they are moved by as much as kernels differ.
    """
    if torch.equal(fast, plain):
        return
    num_tokens, device, settings = plain.shape[1], plain.device, SamplingSettings(**sampling)
    num_known = num_tokens - sum(sizes)
    orders = torch.as_tensor(orders).to(device)
    labels = None if labels is None else labels.to(device)
    halves = [labels, None] if settings.guided else [labels]
    given = sizes, orders, num_known
    logits = torch.cat([forced_logits(model, plain, half, *given) for half in halves])
    drawn = streams.uniforms("sampling", seed, np.arange(len(plain)), count=num_tokens)
    drawn = torch.from_numpy(drawn).to(device)
    new = orders[:, num_known:]
    scales = guidance_scales(settings, num_tokens, device)[num_known:]
    generator = torch.Generator().manual_seed(0)
    moves = (torch.rand(logits.shape, generator=generator) * 2 - 1 for _ in range(TRIES))
    moved = (logits + ROUNDING * move.to(device) for move in moves)
    possible = torch.stack([pick(each, scales, drawn.gather(1, new), settings) for each in moved])
    fast, plain = fast.gather(1, new), plain.gather(1, new)
    step = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(device)
    for image in torch.nonzero((fast != plain).any(dim=1))[:, 0]:
        differs = fast[image] != plain[image]
        first = differs & (step == step[differs].min())
        tried = possible[:, image, first]
        for found in (fast, plain):
            assert (tried == found[image, first]).any(dim=0).all(), f"image {image}"
