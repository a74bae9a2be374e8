"""Decoding that starts from known tokens, whole and step by step."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from models.decoding import SAMPLERS, UNDECIDED, generate, generate_steps
from models.fast import FastPath
from tests.forced import assert_same_but_for_ties, forced_logits
from tests.unit.models.small import NUM_TOKENS, VOCAB, random_batch, random_split, small_lpd

GUIDANCE = [{}, {"cfg": 3.0}, {"cfg": 2.0, "cfg_schedule": "constant", "top_k": 9}]


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("num_known", [1, 5, NUM_TOKENS - 1])
@torch.no_grad()
def test_equals_the_teacher_forced_pass(num_known: int, labelled: bool, blind: bool) -> None:
    generator = torch.Generator().manual_seed(num_known)
    model = small_lpd(blind_queries=blind)
    tokens, labels, orders = random_batch(generator)
    labels = labels if labelled else None  # the two halves of guidance
    sizes = random_split(generator, NUM_TOKENS - num_known)
    forced = model.forward_logits(tokens, labels, [num_known, *sizes], orders)[:, num_known:]
    assert forced.std() > 0.5
    for network in (model, FastPath.of(model).network(model)):
        decoded = forced_logits(network, tokens, labels, sizes, orders, num_known)
        assert (forced - decoded).abs().max() < 1e-5


@pytest.mark.parametrize("options", GUIDANCE)
def test_the_forced_pass_predicts_the_generated_tokens(options: dict) -> None:
    """Greedily, every token of `generate` is the best of the pass over its own result."""
    generator = torch.Generator().manual_seed(1)
    model, num_known, sizes = small_lpd(), 6, [2, 3, 5]
    tokens, labels, orders = random_batch(generator)
    known = tokens.gather(1, orders[:, :num_known])
    made = generate(model, labels, orders, sizes, known=known, **options | {"top_k": 1})
    assert torch.equal(made.gather(1, orders)[:, :num_known], known)
    with torch.no_grad():
        groups = [num_known, *sizes]
        cond, uncond = (
            model.forward_logits(made, given, groups, orders) for given in (labels, None)
        )
    # Token j of the order, the known ones counted, has strength 1 + (cfg - 1) * j / N.
    scale = torch.full((NUM_TOKENS,), options.get("cfg", 1.0))
    if options.get("cfg_schedule") != "constant":
        scale = 1 + (scale - 1) * torch.arange(NUM_TOKENS) / NUM_TOKENS
    best = (uncond + scale[:, None] * (cond - uncond)).argmax(dim=-1)
    assert torch.equal(made.gather(1, orders)[:, num_known:], best[:, num_known:])


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("options", "num_known"), list(itertools.product(GUIDANCE, [1, 7, 15])))
def test_fast_equals_plain(options: dict, num_known: int, bf16: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    model = small_lpd()
    tokens, labels, orders = random_batch(generator, batch_size=5)
    known = tokens.gather(1, orders[:, :num_known])
    sizes = random_split(generator, NUM_TOKENS - num_known)
    if bf16:  # which rounds the two differently: the fast one against itself, step by step
        with torch.autocast("cpu", dtype=torch.bfloat16):
            whole = generate(model, labels, orders, sizes, known=known, **options)
            *_, last = generate_steps(model, labels, orders, sizes, known=known, **options)
        assert torch.equal(whole, last)
        return
    fast, plain = (
        generate(model, labels, orders, sizes, known=known, sampler=sampler, **options)
        for sampler in SAMPLERS
    )
    assert_same_but_for_ties(fast, plain, model, labels, orders, sizes, **options)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_known", [0, 6])
def test_steps_fill_in_the_result(num_known: int, sampler: str) -> None:
    generator = torch.Generator().manual_seed(3)
    model = small_lpd(proj_dropout=0.5).train()
    tokens, labels, orders = random_batch(generator)
    options = {"cfg": 2.0, "seed": 5, "image_ids": [4, 9, 2], "sampler": sampler}
    if num_known:
        options["known"] = tokens.gather(1, orders[:, :num_known])
    sizes = [1, 2, NUM_TOKENS - num_known - 3]
    result = generate(model, labels, orders, sizes, **options)
    stages = []
    for stage in generate_steps(model, labels, orders, sizes, **options):
        assert model.training and torch.is_grad_enabled()  # between steps all is as it was
        stages.append(stage)
    assert len(stages) == len(sizes)
    assert torch.equal(stages[-1], result)
    expected, done = result.gather(1, orders), num_known
    for stage, size in zip(stages, sizes, strict=True):
        in_order, done = stage.gather(1, orders), done + size
        assert torch.equal(in_order[:, :done], expected[:, :done])
        assert (in_order[:, done:] == UNDECIDED).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_known_is_the_result(sampler: str) -> None:
    tokens, labels, orders = random_batch(torch.Generator().manual_seed(4))
    arguments = (small_lpd(), labels, orders, [])
    options = {"known": tokens.gather(1, orders), "sampler": sampler}
    assert torch.equal(generate(*arguments, **options), tokens)
    (only,) = generate_steps(*arguments, **options)
    assert torch.equal(only, tokens)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(sampler: str) -> None:
    model = small_lpd()
    tokens, labels, orders = random_batch(torch.Generator().manual_seed(5), batch_size=6)
    ids, known = np.array([4, 90, 17, 3, 50_000, 0]), tokens.gather(1, orders[:, :5])
    options = {"cfg": 3.0, "seed": 7, "sampler": sampler}
    together = generate(model, labels, orders, [4, 7], known=known, image_ids=ids, **options)
    for rows in ([0], [1, 2], [5, 3, 4]):
        inputs = (model, labels[rows], orders[rows], [4, 7])
        alone = generate(*inputs, known=known[rows], image_ids=ids[rows], **options)
        assert torch.equal(alone, together[rows])


def test_bad_known_tokens_are_refused() -> None:
    model = small_lpd()
    _, labels, orders = random_batch(torch.Generator())
    known = torch.zeros(3, 4, dtype=torch.int64)
    for bad, message in [
        (known[:2], r"known: found torch.int64 of shape \(2, 4\), expected whole numbers \(3, 4\)"),
        (known.float(), "known: found torch.float32"),
        (known - 1, r"known: found -1\.\.-1, expected 0\.\.22"),
        (known + VOCAB, r"known: found 23\.\.23, expected 0\.\.22"),
    ]:
        with pytest.raises(ValueError, match=message):
            generate(model, labels, orders, [12], known=bad)
        with pytest.raises(ValueError, match=message):  # before the first step is asked for
            generate_steps(model, labels, orders, [12], known=bad)
    with pytest.raises(ValueError, match="sum to 16, expected a sum of 12"):
        generate(model, labels, orders, [16], known=known)
    with pytest.raises(ValueError, match="orders: found none"):
        generate(model, labels, None, [12], known=known)
