"""The network as the fast sampler runs it: three functions of rows with attention in between.

Weights are laid out for the processor; between blocks the stream stays in float32.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from models.cpu import Dropout
from models.cuda_graphs import GraphCache, WeightState
from models.lpd import LPD
from models.transformer import LAYER_NORM_EPS, Attention, Block, KVCache, split_heads
from util.device import has_bf16_products

logger = logging.getLogger(__name__)

# An evaluation uses two: for its full batches and for the last one.
MAX_GRAPHS = 4

# What `NetworkWeights` knows how to prepare. A model with other parts (adapters, quantised or
# sharded layers) is left to the plain sampler.
_KNOWN_PARTS = {
    *(Block, Attention, Mlp, nn.ModuleList),
    *(nn.Linear, nn.LayerNorm, nn.Embedding, nn.GELU, nn.Dropout, Dropout, nn.Identity),
}


class Linear(NamedTuple):
    """Weight (out, in) and bias (out,) of a linear layer."""

    weight: Tensor
    bias: Tensor | None
    packed: bool  # the weight lies in blocks as oneDNN multiplies them (CPU only)

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        """(..., in) of any dtype -> (..., out) in the weights' dtype, through an exact GELU."""
        x = x.to(self.weight.dtype)
        if self.packed:
            then = "gelu" if gelu else "none"
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, then, [], "none")
        x = F.linear(x, self.weight, self.bias)
        return F.gelu(x) if gelu else x


class Norm(NamedTuple):
    """Weight and bias of a LayerNorm, (C,) float32 whatever the model's dtype."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, LAYER_NORM_EPS)


class BlockWeights(NamedTuple):
    """Weights of one transformer block."""

    norm1: Norm
    qkv: Linear
    proj: Linear
    norm2: Norm
    fc1: Linear
    fc2: Linear


def rows_in(x: Tensor, block: BlockWeights) -> Tensor:
    """(rows, C) float32 -> (rows, 3 * C): what the first attention needs."""
    return block.qkv(block.norm1(x))


def rows_through(x: Tensor, attended: Tensor, block: BlockWeights) -> Tensor:
    """The rest of a block after its attention: two (rows, C) -> (rows, C) float32."""
    x = x + block.proj(attended)
    return x + block.fc2(block.fc1(block.norm2(x), gelu=True))


def rows_between(
    x: Tensor, attended: Tensor, block: BlockWeights, following: BlockWeights
) -> tuple[Tensor, Tensor]:
    """From one attention to the next: the stream (rows, C) and its (rows, 3 * C)."""
    x = rows_through(x, attended, block)
    return x, rows_in(x, following)


def rows_out(x: Tensor, attended: Tensor, block: BlockWeights, norm: Norm, head: Linear) -> Tensor:
    """From the last attention to (rows, vocabulary) logits."""
    return head(norm(rows_through(x, attended, block)))


class NetworkWeights(NamedTuple):
    """All that `FastNetwork` multiplies with; embeddings stay with the model."""

    blocks: tuple[BlockWeights, ...]
    norm: Norm
    head: Linear
    dtype: torch.dtype

    @classmethod
    def prepare(cls, model: LPD, dtype: torch.dtype, packed: bool) -> "NetworkWeights":
        """Cast the weights to the `dtype` of the products, and on a CPU pack them, once."""
        *blocks, norm, head = _prepared(model, dtype, packed)
        return cls(tuple(blocks), norm, head, dtype)

    def refresh(self, model: LPD) -> None:
        """Copy the model's present values, to the same addresses if they are not packed."""
        new = _tensors(_prepared(model, self.dtype, self.head.packed))
        for target, source in zip(_tensors(self), new, strict=True):
            # An uncast weight is the parameter itself: a copy would count as a change of it.
            if target.is_mkldnn or target.data_ptr() != source.data_ptr():
                target.copy_(source)


def _prepared(model: LPD, dtype: torch.dtype, packed: bool) -> Iterator[tuple]:
    """Weights of each block, of the last LayerNorm and of the head, one after another."""

    def norm(layer: nn.LayerNorm) -> Norm:
        return Norm(layer.weight.detach().float(), layer.bias.detach().float())

    def linear(layer: nn.Linear) -> Linear:
        # Cast and packed once, which `nn.Linear` does at every call.
        weight = layer.weight.detach().to(dtype)
        bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        if packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        return Linear(weight, bias, packed)

    for block in model.blocks:
        attn, mlp = block.attn, block.mlp
        first = norm(block.norm1), linear(attn.qkv), linear(attn.proj)
        yield BlockWeights(*first, norm(block.norm2), linear(mlp.fc1), linear(mlp.fc2))
    yield norm(model.norm)
    yield linear(model.head)


def _tensors(parts: Iterable[Any]) -> Iterator[Tensor]:
    for part in parts:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, tuple):
            yield from _tensors(part)


@dataclass(frozen=True)
class Rows:
    """The three functions of rows, tokens of any image, as they are or compiled."""

    # Without a second dimension nothing but the number of rows varies.
    into: Callable[..., Tensor] = rows_in
    between: Callable[..., tuple[Tensor, Tensor]] = rows_between
    out: Callable[..., Tensor] = rows_out

    @classmethod
    def compiled(
        cls, weights: NetworkWeights, backend: str | Callable[..., Any] = "inductor"
    ) -> "Rows":
        """Compile once for any number of rows of unpacked `weights`, if that works here."""
        logger.info("compiling the fast sampler (once per process, up to half a minute)")
        for weight in _tensors(weights):
            torch._dynamo.mark_static(weight)
        compile_ = partial(torch.compile, dynamic=True, backend=backend)
        rows = cls(compile_(rows_in), compile_(rows_between), compile_(rows_out))
        width, device = weights.norm.weight.numel(), weights.norm.weight.device
        x = torch.zeros(6, width, device=device)
        attended = torch.zeros_like(x, dtype=weights.dtype)
        try:
            # Compiled code holds for one state of autocast: that of a capture.
            with torch.no_grad(), torch.autocast(device.type, enabled=False, cache_enabled=False):
                rows.into(x, weights.blocks[0])
                rows.between(x, attended, weights.blocks[0], weights.blocks[-1])
                rows.out(x, attended, weights.blocks[-1], weights.norm, weights.head)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # no Triton, no compiler, ...
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            logger.warning("going on without compilation: %s", reason)
            return cls()
        return rows


class FastNetwork:
    """Stands in for an LPD in the decoding loop, with its embeddings and prepared weights."""

    def __init__(self, model: LPD, weights: NetworkWeights, rows: Rows) -> None:
        self._model, self._weights, self._rows = model, weights, rows
        self.embed_class = model.embed_class
        self.embed_tokens = model.embed_tokens
        self.embed_queries = model.embed_queries

    def new_cache(self, batch_size: int) -> KVCache:
        return self._model.new_cache(batch_size, self._weights.dtype)

    def decode_step(self, context: Tensor, queries: Tensor, cache: KVCache) -> Tensor:
        """As of LPD; the last block leaves the context tokens at their keys and values."""
        weights, blocks = self._weights, self._weights.blocks
        num_context, shape = context.shape[1], (len(context), -1)
        x = torch.cat([context, queries], dim=1).float().flatten(0, 1)

        def attend(layer: int, qkv: Tensor, queries_only: bool = False) -> Tensor:
            heads = split_heads(qkv.unflatten(0, shape), cache.entries.shape[3])
            return cache.attend(layer, heads, num_context, queries_only).flatten(0, 1)

        qkv = self._rows.into(x, blocks[0])
        for layer, (block, following) in enumerate(itertools.pairwise(blocks)):
            x, qkv = self._rows.between(x, attend(layer, qkv), block, following)
        attended = attend(len(blocks) - 1, qkv, queries_only=True)
        cache.length += num_context
        x = x.unflatten(0, shape)[:, num_context:].flatten(0, 1).contiguous()
        logits = self._rows.out(x, attended, blocks[-1], weights.norm, weights.head)
        return logits.unflatten(0, shape)


class FastPath:
    """Prepared weights of one model, made when they are first used and again when they changed."""

    _of_models: ClassVar[WeakKeyDictionary[LPD, "FastPath"]] = WeakKeyDictionary()

    def __init__(self) -> None:
        # Of whole generations, CUDA only; empty whenever the weights have moved.
        self.graphs = GraphCache(MAX_GRAPHS)
        self._weights: NetworkWeights | None = None
        self._rows = Rows()
        self._state: WeightState | None = None
        self._trained = False
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._obstacle: str | None = None

    @classmethod
    def of(cls, model: LPD) -> "FastPath":
        """Return the one of a model, which lives as long; a copy of the model has its own."""
        return cls._of_models.setdefault(model, cls())

    @classmethod
    def forget(cls, model: LPD) -> None:
        """Drop what was prepared and captured for a model."""
        cls._of_models.pop(model, None)

    def network(self, model: LPD) -> FastNetwork | None:
        """Return a FastNetwork with current weights, or None if unsupported (logged once)."""
        dtype = model.compute_dtype()
        obstacle = _find_obstacle(model, dtype)
        if obstacle is not None:
            self.use_plain(obstacle)
            return None
        # Copies made in inference mode could not be refreshed outside it.
        with torch.inference_mode(False), torch.no_grad():
            self._follow(model, dtype)
        return FastNetwork(model, self._weights, self._rows)

    def _follow(self, model: LPD, dtype: torch.dtype) -> None:
        """Prepare the weights if they are new, moved or changed."""
        weights = list(model.parameters())
        unprepared = self._state is None or self._weights.dtype != dtype
        if unprepared or not self._state.same_tensors(weights):
            self.graphs.clear()
            # The old weights, which the state holds, and their copies go before new copies come.
            self._state = self._weights = None
            on_cpu = model.pos_embed.device.type == "cpu"
            self._weights = NetworkWeights.prepare(model, dtype, packed=on_cpu)
            if not on_cpu:
                self._rows = Rows.compiled(self._weights)
        elif self._trained or model.training or not self._state.is_current(weights):
            self._weights.refresh(model)
        else:
            return
        # Remember them as they are now, and notice when they are trained.
        self._state, self._trained = WeightState(weights), False
        for hook in self._hooks:
            hook.remove()
        # Optimisers that write through `.data` leave version counters alone: a gradient is a
        # change as well.
        self._hooks = [
            weight.register_post_accumulate_grad_hook(self._note_gradient)
            for weight in weights
            if weight.requires_grad
        ]

    def _note_gradient(self, weight: Tensor) -> None:
        self._trained = True

    def use_plain(self, reason: str) -> None:
        """Say once that, and why, the plain sampler stands in."""
        if reason != self._obstacle:
            logger.warning("the plain sampler stands in for the fast one: %s", reason)
        self._obstacle = reason


def _find_obstacle(model: LPD, dtype: torch.dtype) -> str | None:
    """Return why the fast path does not serve a model, if so."""
    device = model.pos_embed.device.type
    if type(model).decode_step is not LPD.decode_step:
        return f"{type(model).__name__} has a decode_step of its own"
    if device not in ("cpu", "cuda"):
        return f"it knows no device of type {device}"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"it computes in float32 or bfloat16, not {dtype}"
    if device == "cpu":
        if not torch.backends.mkldnn.is_available():
            return "this PyTorch was built without oneDNN"
        if dtype == torch.bfloat16 and not has_bf16_products():
            return "this processor has no bfloat16 products"
    for name, part in model.named_modules():
        name, kind = name or "the model", type(part)
        if part is not model and kind not in _KNOWN_PARTS:
            return f"{name} is a {kind.__name__}, which it does not know"
        unusual = kind is nn.GELU and part.approximate != "none"
        if kind is nn.LayerNorm:
            unusual = part.weight is None or part.bias is None or part.eps != LAYER_NORM_EPS
        if unusual:
            return f"{name} is another {kind.__name__} than LPD has, which it does not know"
        if part._forward_hooks or part._forward_pre_hooks:
            return f"{name} has a forward hook"
        # Whose replacement on one object would go unseen.
        for method in sorted({"forward", "decode", "decode_step"} & vars(part).keys()):
            return f"{name} has a {method} of its own"
    return None
