"""What the fast sampler keeps of a model between calls: prepared weights and CUDA graphs."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import torch
from timm.layers import Mlp
from torch import nn

from models.fast_network import FastNetwork, NetworkWeights, Rows
from models.transformer import LAYER_NORM_EPS, Attention, Block, Dropout
from models.weight_state import WeightState
from util.cuda_graphs import GraphCache

if TYPE_CHECKING:
    from models.lpd import LPD

logger = logging.getLogger(__name__)

# An evaluation uses two: for its full batches and for the last one.
MAX_GRAPHS = 4

# What `NetworkWeights` knows how to prepare. A model with other parts (adapters, quantised or
# sharded layers) is left to the plain sampler.
_KNOWN_PARTS = {
    *(Block, Attention, Mlp, nn.ModuleList),
    *(nn.Linear, nn.LayerNorm, nn.Embedding, nn.GELU, nn.Dropout, Dropout, nn.Identity),
}
# Whose replacement on one object would go unseen.
_METHODS = {"forward", "decode", "decode_step"}


class FastPath:
    """Prepares a model's weights when they are first used, and again when they have changed.

    Changes are seen by the parameters' version counters. Optimisers that write through `.data`
    leave those alone, so weights also count as changed while the model is in training mode and
    after it was.

    Attributes:
        graphs: of whole generations, CUDA only; empty whenever the weights have moved.
    """

    def __init__(self) -> None:
        self.graphs = GraphCache(MAX_GRAPHS)
        self._weights: NetworkWeights | None = None
        self._rows = Rows()
        self._state: WeightState | None = None
        self._expired = False
        self._obstacle: str | None = None

    def expire(self) -> None:
        """Prepare the weights anew before their next use, whatever their version says."""
        self._expired = True

    def network(self, model: LPD) -> FastNetwork | None:
        """The model with prepared weights of today, in its `compute_dtype`.

        Returns:
            None where the fast path does not serve the model; the log says why, once.
        """
        dtype = model.compute_dtype()
        obstacle = _find_obstacle(model, dtype)
        if obstacle is not None:
            self.use_plain(obstacle)
            return None
        weights = list(model.parameters())
        # Copies made in inference mode could not be refreshed outside it.
        with torch.inference_mode(False), torch.no_grad():
            self._follow(model, weights, dtype)
        return FastNetwork(model, self._weights, self._rows)

    def _follow(self, model: LPD, weights: list[nn.Parameter], dtype: torch.dtype) -> None:
        """Prepare the weights if they are new, moved or changed."""
        if (
            self._state is None
            or self._weights.dtype != dtype
            or not self._state.same_tensors(weights)
        ):
            self._state = None
            self.graphs.clear()
            self._weights = None  # the old copies go before the new ones come
            on_cpu = model.pos_embed.device.type == "cpu"
            self._weights = NetworkWeights.prepare(model, dtype, packed=on_cpu)
            if not on_cpu:
                self._rows = _compile(self._weights)
            self._state = WeightState(weights)
        elif self._expired or model.training or not self._state.is_current(weights):
            self._weights.refresh(model)
            self._state = WeightState(weights)
        self._expired = False

    def use_plain(self, reason: str) -> None:
        """Say once that, and why, the plain sampler stands in."""
        if reason != self._obstacle:
            logger.warning("the plain sampler stands in for the fast one: %s", reason)
        self._obstacle = reason


def _find_obstacle(model: LPD, dtype: torch.dtype) -> str | None:
    """Why the fast path does not serve a model, if so."""
    device = model.pos_embed.device.type
    if device not in ("cpu", "cuda"):
        return f"it knows no device of type {device}"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"it computes in float32 or bfloat16, not {dtype}"
    if device == "cpu":
        if not torch.backends.mkldnn.is_available():
            return "this PyTorch was built without oneDNN"
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return "this processor has no bfloat16 products"
    for name, part in model.named_modules():
        if part is not model and type(part) not in _KNOWN_PARTS:
            return f"{name} is a {type(part).__name__}, which it does not know"
        if isinstance(part, nn.LayerNorm):
            if part.eps != LAYER_NORM_EPS:
                return f"{name} has eps {part.eps}, which it does not know"
            if part.weight is None or part.bias is None:
                return f"{name} lacks weights, which it does not know"
        if isinstance(part, nn.GELU) and part.approximate != "none":
            return f"{name} approximates, which it does not"
        if part._forward_hooks or part._forward_pre_hooks:
            return f"{name or 'the model'} has a forward hook"
        replaced = sorted(_METHODS & vars(part).keys())
        if replaced:
            return f"{name or 'the model'} has a {replaced[0]} of its own"
    return None


def _compile(weights: NetworkWeights) -> Rows:
    """The functions of rows, compiled if that works here."""
    logger.info("compiling the fast sampler (once per process, up to half a minute)")
    started = time.monotonic()
    try:
        rows = Rows.compiled(weights)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # no Triton, no compiler, ...
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        logger.warning("going on without compilation: %s", reason)
        return Rows()
    logger.info("compiled in %.0f s", time.monotonic() - started)
    return rows
