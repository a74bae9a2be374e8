"""The ablation in which the queries of a group do not see one another."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from hub.weights import atomic_save
from models.decoding import SAMPLERS, generate
from tests.unit.models.small import NUM_TOKENS, random_batch, small_lpd
from training.checkpoint import TrainingState, load_pretrained
from util.errors import UserError


def test_samplers_agree() -> None:
    _, labels, orders = random_batch(torch.Generator().manual_seed(0))
    sizes, model = [1, 3, 5, 7], small_lpd(blind_queries=True)
    fast, plain = (generate(model, labels, orders, sizes, sampler=s) for s in SAMPLERS)
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


@pytest.mark.parametrize("blind", [False, True])
def test_a_checkpoint_of_the_other_kind_is_refused(tmp_path: Path, blind: bool) -> None:
    model, path = small_lpd(blind_queries=blind), tmp_path / "lpd.pth"
    flags = argparse.Namespace(blind_queries=blind)
    atomic_save(TrainingState(model, torch.optim.AdamW(model.parameters()), flags).content(), path)
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
