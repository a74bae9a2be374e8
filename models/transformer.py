"""Pre-norm transformer blocks, for one masked pass over a sequence and for cached decoding."""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from models.cpu import Dropout, scaled_dot_product_attention

LAYER_NORM_EPS = 1e-6


@dataclass
class KVCache:
    """Keys and values of the context tokens, for all layers of a model.

    A decoding step writes its context tokens and its queries behind the `length` tokens known so
    far and then advances over the context tokens only, so that the next step's context overwrites
    the queries. The first token of all is the class token, which sees only itself whatever enters
    beside it.
    """

    entries: Tensor  # (layers, keys and values, B, heads, capacity, head size)
    blind_queries: bool = False  # the queries of a step do not see one another
    length: int = 0  # context tokens stored, the class token included

    def attend(
        self, layer: int, qkv: Tensor, num_context: int, queries_only: bool = False
    ) -> Tensor:
        """Store a step's keys and values in one layer and attend to all it may see.

        `qkv` (3, B, heads, T, head size) are of `num_context` new context tokens, then of this
        step's queries -> (B, T, heads * head size); `queries_only`, without the context tokens.
        """
        known = self.length + num_context
        stop = self.length + qkv.shape[3]
        self.entries[layer, :, :, :, self.length : stop] = qkv[1:]
        keys, values = self.entries[layer, :, :, :, :stop]
        mask = None
        if self.blind_queries:  # a query sees what is known and itself
            queries = torch.arange(known, stop, device=qkv.device)[:, None]
            seen = torch.arange(stop, device=qkv.device)
            mask = (seen < known) | (seen == queries)

        def attended(rows: slice, seen: int, mask: Tensor | None = None) -> Tensor:
            # Attention leaves a token's heads side by side in memory: merging them copies nothing,
            # unless rows were put together before.
            q, k, v = qkv[0, :, :, rows], keys[:, :, :seen], values[:, :, :seen]
            return merge_heads(F.scaled_dot_product_attention(q, k, v, mask))

        # Two unmasked calls say what a mask would: the context does not see the queries.
        queries = attended(slice(num_context, None), stop, mask)
        if queries_only:
            return queries
        # What is known from the start comes with the class token, and is a group after it.
        starts = [0, 1] if self.length == 0 and num_context > 1 else [0]
        context = [
            attended(slice(start, end), self.length + end)
            for start, end in itertools.pairwise([*starts, num_context])
        ]
        return torch.cat([*context, queries], dim=1)


def split_heads(qkv: Tensor, num_heads: int) -> Tensor:
    """Split (B, L, 3 * C), (q, k, v) x heads x size -> (3, B, heads, L, size)."""
    return qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)


def merge_heads(x: Tensor) -> Tensor:
    """Merge (B, heads, L, size) -> (B, L, C)."""
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head self-attention with biases on qkv; rows of `qkv` are (q, k, v) x heads x size."""

    def __init__(self, dim: int, num_heads: int, attn_dropout: float, proj_dropout: float) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not a multiple of the number of heads {num_heads}")
        self.num_heads = num_heads
        self.head_size = dim // num_heads
        self.attn_dropout = attn_dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = Dropout(proj_dropout)

    def forward(self, x: Tensor, mask: Tensor | BlockMask) -> Tensor:
        """Attend within one sequence, (B, L, C) -> same, where the mask, (L, L) bool, is True.

        A sparse one is meant for compiled code, and knows no dropout.
        """
        qkv = split_heads(self.qkv(x), self.num_heads)
        dropout = self.attn_dropout if self.training else 0.0
        if isinstance(mask, BlockMask):
            x = flex_attention(*qkv, block_mask=mask)
        else:
            x = scaled_dot_product_attention(*qkv, mask, dropout)
        return self.proj_drop(self.proj(merge_heads(x)))

    def decode(self, x: Tensor, num_context: int, cache: KVCache, layer: int) -> Tensor:
        """Attend from `num_context` tokens, then queries: (B, T, C) -> same; does not advance."""
        qkv = split_heads(self.qkv(x), self.num_heads)
        return self.proj_drop(self.proj(cache.attend(layer, qkv, num_context)))


class Block(nn.Module):
    """LayerNorm, attention, residual; LayerNorm, MLP (exact GELU), residual."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, attn_dropout: float, proj_dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads, attn_dropout, proj_dropout)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=nn.GELU)
        self.mlp.drop1, self.mlp.drop2 = Dropout(proj_dropout), Dropout(proj_dropout)

    def forward(self, x: Tensor, mask: Tensor | BlockMask) -> Tensor:
        """One masked pass; shapes as for `Attention.forward`."""
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))

    def decode(self, x: Tensor, num_context: int, cache: KVCache, layer: int) -> Tensor:
        """One decoding step; shapes as for `Attention.decode`."""
        x = x + self.attn.decode(self.norm1(x), num_context, cache, layer)
        return x + self.mlp(self.norm2(x))
