"""The exact log-likelihood that parallel decoding under a plan gives to known tokens."""

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
    this plan (without guidance, at temperature 1, unfiltered). Dropout is off; honours an enclosing
    `torch.autocast`. Tokens (B, N) int64 in raster order and labels (B,) int64, None for "no
    class", are on the model's device -> (B, N) float32, nats, generation order.
    """
    orders = plan.orders.to(tokens.device)
    images = max(1, LOGITS_AT_A_TIME // (plan.num_tokens * model.grid.vocab_size))
    with eval_mode(model):
        x = model.forward_queries(tokens, labels, plan.group_sizes, orders)
        targets = tokens.gather(1, orders)
        nll = [
            F.cross_entropy(model.head(part).float().mT, wanted, reduction="none")
            for part, wanted in zip(x.split(images), targets.split(images), strict=True)
        ]
    return torch.cat(nll)
