"""The counted work against what PyTorch counts while the same work is done, to 1 %."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.decoding import generate
from models.lpd import LPD, lpd_l, lpd_tiny
from models.masks import group_causal_mask
from orders.group_sizes import group_sizes, training_group_sizes
from orders.locality import random_orders
from performance.cost import (
    num_parameters,
    sampling_cost,
    tokenizer_cost,
    training_cost,
    visible_pairs,
)
from tokenizers.vq_model import VQModel


@pytest.fixture(scope="module")
def model() -> LPD:
    torch.manual_seed(0)
    return LPD(
        img_size=64,
        vqgan_stride=8,
        decoder_embed_dim=256,
        decoder_depth=3,
        decoder_num_heads=4,
        class_num=10,
        vqgan_vocab_size=500,
    )


@pytest.mark.parametrize(("steps", "cfg"), [(1, 3.0), (12, 3.0), (64, 1.0)])
def test_sampling(model: LPD, steps: int, cfg: float) -> None:
    sizes = [64] if steps == 1 else group_sizes(64, steps)
    labels = torch.zeros(2, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        generate(model, labels, random_orders(2, 64), sizes, cfg=cfg, sampler="plain")
    cost = sampling_cost(model, sizes, cfg != 1, batch_size=2, number_bytes=2)
    assert 2 * cost.operations == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_bytes_of_sampling_are_shared_by_a_batch(model: LPD) -> None:
    sizes = group_sizes(64, 12)
    one, many = (sampling_cost(model, sizes, True, count, 2) for count in (1, 8))
    weights = sum(x.numel() for x in (*model.blocks.parameters(), *model.head.parameters()))
    shared = 12 * weights * 2
    assert one.bytes - many.bytes == pytest.approx(shared * (1 - 1 / 8))
    assert one.operations == pytest.approx(many.operations)


def test_training_with_dense_masks(model: LPD) -> None:
    lists = training_group_sizes(64)
    tokens, labels = torch.zeros(2, 64, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    drop = torch.zeros(2, dtype=torch.bool)
    orders = torch.from_numpy(random_orders(2, 64))
    with FlopCounterMode(display=False) as counter:
        for sizes in lists:
            model(tokens, labels, sizes, orders, drop).backward()
    model.zero_grad()
    cost = training_cost(model, lists, batch_size=2, number_bytes=4, sparse=False)
    found = counter.get_total_flops() / (2 * len(lists))
    assert cost.operations == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("sizes", [[1], [16], [1, 2, 4, 9], [3, 1, 5, 7], [1] * 16])
def test_visible_pairs_are_those_of_the_mask(sizes: list[int]) -> None:
    assert visible_pairs(sizes) == int(group_causal_mask(sizes).sum())


def test_sparse_masks_save_attention_only(model: LPD) -> None:
    lists = [group_sizes(64, 12)]
    dense, sparse = (training_cost(model, lists, 1, 2, kind) for kind in (False, True))
    rows = 1 + (64 - lists[0][-1]) + 64
    saved = 14 * 256 * 3 * (rows**2 - visible_pairs(lists[0]))
    assert dense.operations - sparse.operations == saved
    assert dense.bytes == sparse.bytes


def test_tokenizer_counts_encoder_and_decoder() -> None:
    tokenizer = VQModel(
        codebook_size=50,
        codebook_embed_dim=4,
        ch=32,
        encoder_ch_mult=(1, 2),
        decoder_ch_mult=(1, 2),
    )
    costs = tokenizer_cost(tokenizer, 64, 2)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tokenizer.decode_code(torch.zeros(3, 64, dtype=torch.int64))
    assert 3 * costs["decoder"].operations == pytest.approx(counter.get_total_flops(), rel=0.01)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tokenizer.encode(torch.zeros(1, 3, 16, 16))
    assert costs["encoder"].operations == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert costs["decoder"].bytes == 2 * sum(x.numel() for x in tokenizer.decoder.parameters())


def test_published_figures() -> None:
    """319 M weights in blocks and head, 0.65 TFLOP to sample an image, 0.98 to train on one."""
    with torch.device("meta"):
        model = lpd_l()
        tiny = lpd_tiny(img_size=32, vqgan_stride=4, vqgan_vocab_size=256, class_num=10)
    blocks, head = num_parameters(model.blocks, matrices=True), model.head.weight.numel()
    assert blocks + head == pytest.approx(319e6, rel=0.005)
    sampled = sampling_cost(model, group_sizes(256, 20), True, 64, 2)
    assert sampled.operations == pytest.approx(0.65e12, rel=0.05)
    trained = training_cost(model, training_group_sizes(256), 64, 2, sparse=True)
    assert trained.operations == pytest.approx(0.98e12, rel=0.05)
    smaller = sampling_cost(tiny, group_sizes(64, 12), True, 1, 4)
    assert smaller.operations < sampled.operations / 100


def test_every_list_has_its_own_length(model: LPD) -> None:
    lists = training_group_sizes(64)
    costs = {training_cost(model, [one], 1, 4, False).operations for one in lists}
    assert len(costs) == len({one[-1] for one in lists})
