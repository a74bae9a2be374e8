import logging
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hub.weights import atomic_save
from models.lpd import lpd_tiny
from tests.unit.models.small import random_batch, small_lpd
from training.checkpoint import TrainingState, load_pretrained
from util.errors import UserError

TOKENS, LABELS, ORDERS = random_batch()
SIZES = [1, 4, 11]


def test_loss_is_the_mean_cross_entropy_of_the_logits() -> None:
    model = small_lpd()
    logits = model.forward_logits(TOKENS, LABELS, SIZES, ORDERS)
    expected = F.cross_entropy(logits.mT, TOKENS.gather(1, ORDERS))
    assert torch.allclose(model(TOKENS, LABELS, SIZES, ORDERS), expected)
    assert len({model(TOKENS, LABELS, SIZES).item() for _ in range(4)}) == 4  # random orders
    with pytest.raises(ValueError, match="group_sizes: found a sum of 15, expected 16"):
        model(TOKENS, LABELS, [1, 14], ORDERS)


def test_dropped_labels_are_unconditional_and_drawn_in_training_only() -> None:
    model = small_lpd(label_drop_prob=1.0)
    drop = torch.tensor([True, False, True])
    mixed = model.forward_logits(TOKENS, LABELS, SIZES, ORDERS, drop)
    without = model.forward_logits(TOKENS, None, SIZES, ORDERS)
    with_labels = model.forward_logits(TOKENS, LABELS, SIZES, ORDERS)
    assert torch.allclose(mixed[drop], without[drop], atol=1e-6)
    assert torch.allclose(mixed[~drop], with_labels[~drop], atol=1e-6)
    assert not torch.allclose(without, with_labels, atol=1e-2)
    evaluated = model(TOKENS, LABELS, SIZES, ORDERS)
    trained = model.train()(TOKENS, LABELS, SIZES, ORDERS)
    expected = F.cross_entropy(without.mT, TOKENS.gather(1, ORDERS))
    assert torch.allclose(trained, expected, atol=1e-6)
    assert not torch.allclose(evaluated, trained, atol=1e-3)


def test_every_parameter_has_a_gradient_which_checkpointing_does_not_change() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = small_lpd(proj_dropout=0.3, grad_checkpointing=checkpointing).train()
        torch.manual_seed(11)
        model(TOKENS, LABELS, SIZES, ORDERS, torch.tensor([True, False, False])).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain.any() and torch.allclose(plain, recomputed, atol=1e-7)


def test_dropout_acts_in_three_places_and_not_on_embeddings() -> None:
    model = small_lpd(proj_dropout=0.5).train()
    active = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout) and m.p]
    suffixes = ("attn.proj_drop", "mlp.drop1", "mlp.drop2")
    assert active == [f"blocks.{layer}.{suffix}" for layer in range(2) for suffix in suffixes]


def test_attention_dropout_applies_with_one_warning(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        model = small_lpd(attn_dropout=0.5).train()
    assert len(caplog.records) == 1
    drop = torch.zeros(3, dtype=torch.bool)
    for _ in range(2):
        losses = {model(TOKENS, LABELS, SIZES, ORDERS, drop).item() for _ in range(3)}
        assert len(losses) == (3 if model.training else 1)
        model.eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_weights(dtype: torch.dtype) -> None:
    model = small_lpd().to(dtype)
    loss = model(TOKENS, LABELS, SIZES, ORDERS)
    loss.backward()
    expected = small_lpd()(TOKENS, LABELS, SIZES, ORDERS)
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    assert model.head.weight.grad.dtype == dtype


@torch.no_grad()
def test_blind_queries_change_nothing_one_token_at_a_time() -> None:
    blind, seeing = small_lpd(blind_queries=True), small_lpd()
    assert blind.state_dict().keys() == seeing.state_dict().keys()
    one, together = (
        [model.forward_logits(TOKENS, LABELS, sizes, ORDERS) for model in (blind, seeing)]
        for sizes in ([1] * 16, [16])
    )
    assert torch.equal(*one) and not torch.allclose(*together)


@pytest.mark.parametrize("blind", [False, True])
def test_a_checkpoint_of_the_other_kind_is_refused(tmp_path: Path, blind: bool) -> None:
    flags, path = Namespace(blind_queries=blind), tmp_path / "lpd.pth"
    model, other = small_lpd(blind_queries=blind), small_lpd(blind_queries=not blind)
    states = [TrainingState(x, torch.optim.AdamW(x.parameters()), flags) for x in (model, other)]
    atomic_save(states[0].content(), path)
    load_pretrained(model, path)
    load_pretrained(other, path, resize=True)  # training may start from either
    for read in (states[1].restore, partial(load_pretrained, other)):
        with pytest.raises(UserError, match=rf"was trained with{'out' * (not blind)} --blind_q"):
            read(path)


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = lpd_tiny(img_size=32, vqgan_stride=4, vqgan_vocab_size=256, class_num=10)
    for name in ("pos_embed", "mask_token", "fake_latent", "token_emb.weight", "class_emb.weight"):
        assert model.get_parameter(name).std().item() == pytest.approx(0.02, rel=0.15)
    qkv = model.blocks[0].attn.qkv
    assert 0.95 < qkv.weight.abs().max() / (6 / (192 + 3 * 192)) ** 0.5 <= 1
    assert not qkv.bias.any() and model.head.bias is None
