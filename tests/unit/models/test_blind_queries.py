"""The ablation in which the queries of a group do not see one another."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from hub.weights import atomic_save
from models.decoding import generate
from models.fast import FastPath
from models.lpd import LPD
from models.masks import group_causal_block_mask, group_causal_mask
from tests.forced import forced_logits
from tests.unit.models.small import NUM_TOKENS, random_batch, random_split, small_lpd
from training.checkpoint import TrainingState, load_pretrained
from util.errors import UserError


@pytest.mark.parametrize("seed", range(5))
def test_only_other_queries_disappear_from_the_mask(seed: int) -> None:
    sizes = random_split(torch.Generator().manual_seed(seed))
    seeing, blind = group_causal_mask(sizes), group_causal_mask(sizes, blind_queries=True)
    context = len(seeing) - NUM_TOKENS
    assert torch.equal(blind[:, :context], seeing[:, :context])
    assert torch.equal(blind[context:, context:], torch.eye(NUM_TOKENS, dtype=torch.bool))
    assert not blind[:context, context:].any()


@pytest.mark.parametrize("sizes", [[16], [1] * 16, [1, 3, 5, 7]], ids=str)
def test_the_sparse_mask_is_the_dense_one(sizes: list[int]) -> None:
    sparse = group_causal_block_mask(sizes, torch.device("cpu"), blind_queries=True)
    index = torch.arange(2 * NUM_TOKENS)
    kept = torch.cat([index[: NUM_TOKENS - sizes[-1] + 1], index[NUM_TOKENS:]])
    whole = sparse.mask_mod(0, 0, index[:, None], index[None, :])
    dense = group_causal_mask(sizes, blind_queries=True)
    assert torch.equal(whole[kept[:, None], kept], dense)


@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_a_blind_model_decodes_blind(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = small_lpd(seed, blind_queries=True)
    tokens, labels, orders = random_batch(generator)
    sizes = random_split(generator)
    forced = model.forward_logits(tokens, labels, sizes, orders)
    for network in (model, FastPath.of(model).network(model)):
        decoded = forced_logits(network, tokens, labels, sizes, orders)
        assert (forced - decoded).abs().max() < 1e-5


def test_samplers_agree() -> None:
    orders = torch.rand(4, NUM_TOKENS, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    labels, sizes = torch.tensor([0, 1, 2, 3]), [1, 3, 5, 7]
    model = small_lpd(blind_queries=True)
    fast, plain = (generate(model, labels, orders, sizes, sampler=s) for s in ("fast", "plain"))
    assert torch.equal(fast, plain)
    assert not torch.equal(plain, generate(small_lpd(), labels, orders, sizes))


@torch.no_grad()
def test_it_changes_nothing_one_token_at_a_time() -> None:
    tokens, labels, orders = random_batch(torch.Generator().manual_seed(1))
    blind, seeing = small_lpd(blind_queries=True), small_lpd()
    assert blind.state_dict().keys() == seeing.state_dict().keys()
    one = [1] * NUM_TOKENS
    logits = [model.forward_logits(tokens, labels, one, orders) for model in (blind, seeing)]
    assert torch.equal(*logits)
    together = [model.forward_logits(tokens, labels, [16], orders) for model in (blind, seeing)]
    assert not torch.allclose(*together)


def checkpoint(path: Path, blind: bool) -> LPD:
    model = small_lpd(blind_queries=blind)
    optimizer = torch.optim.AdamW(model.parameters())
    flags = argparse.Namespace(blind_queries=blind)
    atomic_save(TrainingState(model, optimizer, flags).content(), path)
    return model


@pytest.mark.parametrize("blind", [False, True])
def test_a_checkpoint_of_the_other_kind_is_refused(tmp_path: Path, blind: bool) -> None:
    path = tmp_path / "lpd.pth"
    checkpoint(path, blind)
    load_pretrained(small_lpd(blind_queries=blind), path)
    other = small_lpd(blind_queries=not blind)
    words = ("with", "without") if blind else ("without", "with")
    message = f"was trained {words[0]} --blind_queries, expected one {words[1]} --blind_queries"
    with pytest.raises(UserError, match=message):
        load_pretrained(other, path)
    state = TrainingState(other, torch.optim.AdamW(other.parameters()), argparse.Namespace())
    with pytest.raises(UserError, match=message):
        state.restore(path)
    load_pretrained(other, path, resize=True)  # training may start from either
