"""The exact log-likelihood that parallel decoding under a plan gives to known tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.cross_entropy import LOGITS_AT_A_TIME
from models.decoding import eval_mode
from models.lpd import LPD
from orders.plan import GenerationPlan


@torch.no_grad()
def token_nll(model: LPD, tokens: Tensor, labels: Tensor | None, plan: GenerationPlan) -> Tensor:
    """Compute -log p(token | tokens of earlier groups) of every token, in one forced pass.

    `generate` draws the tokens of a group independently given the earlier groups, so the sum over
    an image is exactly minus the logarithm of the probability with which it draws that image under
    this plan (without guidance, at temperature 1, unfiltered). Dropout is off while this runs;
    honours an enclosing `torch.autocast`; the logarithms are float32 either way.

    Tokens (B, N) int64 in raster order and labels (B,) int64, None for "no class", are on the
    model's device -> (B, N) float32, nats, generation order.
    """
    if tokens.shape != plan.orders.shape:
        expected = f"expected the plan's {tuple(plan.orders.shape)}"
        raise ValueError(f"found tokens of shape {tuple(tokens.shape)}, {expected}")
    orders = plan.orders.to(tokens.device)
    images = max(1, LOGITS_AT_A_TIME // (plan.num_tokens * model.grid.vocab_size))
    nll = []
    with eval_mode(model):
        x = model.forward_queries(tokens, labels, plan.group_sizes, orders)
        targets = tokens.gather(1, orders)
        for part, wanted in zip(x.split(images), targets.split(images), strict=True):
            logits = model.head(part).float().transpose(1, 2)
            nll.append(F.cross_entropy(logits, wanted, reduction="none"))
    return torch.cat(nll)
