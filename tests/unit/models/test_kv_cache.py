"""What a decoding step's attention computes, and how often it copies that."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models.transformer import KVCache, merge_heads, split_heads

BATCH, HEADS, SIZE = 3, 4, 16


class OperationCount(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def heads_put_together_first(
    cache: KVCache, qkv: torch.Tensor, num_context: int, queries_only: bool
) -> torch.Tensor:
    """`KVCache.attend` of the first layer, with one merge of all rows at the end."""
    stop = cache.length + qkv.shape[3]
    cache.entries[0, :, :, :, cache.length : stop] = qkv[1:]
    keys, values = cache.entries[0, :, :, :, :stop]
    mask = cache._blinding(cache.length + num_context, stop) if cache.blind_queries else None
    queries = F.scaled_dot_product_attention(qkv[0, :, :, num_context:], keys, values, mask)
    if queries_only:
        return merge_heads(queries)
    starts = [0, 1] if cache.length == 0 and num_context > 1 else [0]
    context = [
        F.scaled_dot_product_attention(
            qkv[0, :, :, start:end],
            keys[:, :, : cache.length + end],
            values[:, :, : cache.length + end],
        )
        for start, end in itertools.pairwise([*starts, num_context])
    ]
    return merge_heads(torch.cat([*context, queries], dim=2))


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first_context", [1, 6])
def test_the_order_of_merging_changes_no_bit(
    first_context: int, dtype: torch.dtype, blind: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    caches = [
        KVCache(1, BATCH, HEADS, 32, SIZE, dtype, torch.device("cpu"), blind) for _ in range(2)
    ]
    for num_context, queries in ((first_context, 2), (2, 5), (5, 9)):
        x = torch.randn(BATCH, num_context + queries, 3 * HEADS * SIZE, generator=generator)
        qkv = split_heads(x.to(dtype), HEADS)
        for queries_only in (False, True):
            found = caches[0].attend(0, qkv, num_context, queries_only)
            expected = heads_put_together_first(caches[1], qkv, num_context, queries_only)
            assert found.is_contiguous()
            assert torch.equal(found, expected)
        for cache in caches:
            cache.advance(num_context)


def test_what_rows_see_is_copied_once() -> None:
    def copies(attend) -> dict[str, int]:
        cache = KVCache(1, BATCH, HEADS, 32, SIZE, torch.float32, torch.device("cpu"))
        qkv = split_heads(torch.randn(BATCH, 7, 3 * HEADS * SIZE), HEADS)
        with OperationCount() as found:
            attend(cache, qkv)
        return {name: found.counts[name] for name in ("cat", "clone", "copy_")}

    before = copies(lambda cache, qkv: heads_put_together_first(cache, qkv, 2, False))
    assert before == {"cat": 1, "clone": 1, "copy_": 1}
    assert copies(lambda cache, qkv: cache.attend(0, qkv, 2)) == {**before, "clone": 0}
