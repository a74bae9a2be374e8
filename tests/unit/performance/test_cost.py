"""Counted work, against figures worked out by hand and against what PyTorch counts, to 1 %."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.decoding import generate
from models.lpd import LPD
from models.masks import group_causal_mask
from orders.group_sizes import group_sizes, training_group_sizes
from orders.locality import random_orders
from performance import cost
from performance.cost import Rates, Work, decoding_work
from tokenizers.vq_model import VQModel


@pytest.fixture(scope="module")
def model() -> LPD:
    sizes = dict(img_size=64, vqgan_stride=8, class_num=10, vqgan_vocab_size=500)
    return LPD(**sizes, decoder_embed_dim=256, decoder_depth=3, decoder_num_heads=4)


def counted(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_by_hand() -> None:
    sizes = dict(img_size=4, vqgan_stride=2, vqgan_vocab_size=7, class_num=1)
    tiny = LPD(**sizes, decoder_embed_dim=10, decoder_depth=3, decoder_num_heads=2)
    blocks, head = 3 * (12 * 10**2 + 13 * 10), 7 * 10
    # The class token sees itself and the query both; then a token sees two, three queries five.
    first = 2 * (2 * 2 * blocks + 2 * head + 4 * 10 * 3 * (1 + 2))
    second = 2 * (2 * 4 * blocks + 2 * 3 * head + 4 * 10 * 3 * (2 + 3 * 5))
    weights, stored = 4 * (blocks + head), 2 * 2 * 3 * 10 * 4
    works = decoding_work(tiny, (1, 3), sequences=2, number_bytes=4)
    assert works == [Work(weights, first), Work(weights + stored, second)]


def test_the_slower_of_moving_and_computing_counts() -> None:
    rates = Rates(bandwidth=10, rate=100)
    assert Work(50, 100).seconds(rates) == 5
    assert Work(50, 1000).seconds(rates) == 10


@pytest.mark.parametrize(("steps", "cfg"), [(1, 3.0), (12, 3.0), (64, 1.0)])
def test_sampling(model: LPD, steps: int, cfg: float) -> None:
    sizes = [64] if steps == 1 else group_sizes(64, steps)
    inputs = (model, torch.zeros(2, dtype=torch.int64), random_orders(2, 64), sizes)
    found = counted(lambda: generate(*inputs, cfg=cfg, sampler="plain"))
    works = decoding_work(model, sizes, 4 if cfg != 1 else 2, number_bytes=2)
    assert sum(work.operations for work in works) == pytest.approx(found, rel=0.01)


def test_training(model: LPD) -> None:
    lists = training_group_sizes(64)
    tokens, labels = torch.zeros(2, 64, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    orders, drop = torch.from_numpy(random_orders(2, 64)), torch.zeros(2, dtype=torch.bool)
    found = counted(
        lambda: [model(tokens, labels, sizes, orders, drop).backward() for sizes in lists]
    )
    dense = cost.training_cost(model, lists, batch_size=2, number_bytes=4, sparse=False)
    assert dense.operations == pytest.approx(found / (2 * len(lists)), rel=0.01)
    sizes = group_sizes(64, 12)
    dense, sparse = (cost.training_cost(model, [sizes], 1, 2, kind) for kind in (False, True))
    rows = 1 + (64 - sizes[-1]) + 64
    saved = 14 * 256 * 3 * (rows**2 - cost.visible_pairs(sizes))  # attention only
    assert dense.operations - sparse.operations == saved
    assert dense.bytes == sparse.bytes


@pytest.mark.parametrize("sizes", [[1], [16], [1, 2, 4, 9], [3, 1, 5, 7], [1] * 16])
def test_visible_pairs_are_those_of_the_mask(sizes: list[int]) -> None:
    assert cost.visible_pairs(sizes) == int(group_causal_mask(tuple(sizes)).sum())


@torch.no_grad()
def test_tokenizer() -> None:
    few = {f"{part}coder_ch_mult": (1, 2) for part in ("en", "de")}
    tokenizer = VQModel(codebook_size=50, codebook_embed_dim=4, ch=32, **few)
    costs = cost.tokenizer_cost(tokenizer, 64, 2)
    decoded = counted(lambda: tokenizer.decode_code(torch.zeros(3, 64, dtype=torch.int64)))
    assert 3 * costs["decoder"].operations == pytest.approx(decoded, rel=0.01)
    encoded = counted(lambda: tokenizer.encode(torch.zeros(1, 3, 16, 16)))
    assert costs["encoder"].operations == pytest.approx(encoded, rel=0.01)
    assert costs["decoder"].bytes == 2 * sum(x.numel() for x in tokenizer.decoder.parameters())
