"""How a decoding step's attention is split, and how often it is copied."""

from collections import Counter

import pytest
import torch

from models.transformer import KVCache, split_heads

BATCH, HEADS, SIZE = 3, 4, 16


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first_context", [1, 6])
def test_queries_alone_are_those_of_all_rows_bit_for_bit(first_context, dtype, blind) -> None:
    generator = torch.Generator().manual_seed(0)
    cache = KVCache(torch.empty(1, 2, BATCH, HEADS, 32, SIZE, dtype=dtype), blind)
    for num_context, queries in ((first_context, 2), (2, 5), (5, 9)):
        x = torch.randn(BATCH, num_context + queries, 3 * HEADS * SIZE, generator=generator)
        qkv = split_heads(x.to(dtype), HEADS)
        with torch.profiler.profile() as profile:
            everything = cache.attend(0, qkv, num_context)
        alone = cache.attend(0, qkv, num_context, queries_only=True)
        assert everything.is_contiguous() and alone.is_contiguous()
        assert torch.equal(alone, everything[:, num_context:])
        cache.length += num_context
    if not blind:  # what rows see is copied once
        counts = Counter(event.name for event in profile.events())
        assert [counts[f"aten::{name}"] for name in ("cat", "clone", "copy_")] == [1, 0, 1]
