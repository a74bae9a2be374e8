"""Decoding equals the teacher-forced pass, and does not depend on its surroundings."""

import numpy as np
import pytest
import torch

from models.decoding import SAMPLERS, generate
from models.fast import FastPath
from tests.forced import forced_logits
from tests.unit.models.small import NUM_TOKENS, SIDE, VOCAB, random_batch, random_split, small_lpd


@pytest.mark.parametrize("seed", range(10))
@torch.no_grad()
def test_decoding_equals_the_teacher_forced_pass(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = small_lpd(seed)
    tokens, labels, orders = random_batch(generator)
    sizes = random_split(generator)
    forced = model.forward_logits(tokens, labels, sizes, orders)
    assert forced.std() > 0.5  # the comparison would be idle between constants
    for network in (model, FastPath.of(model).network(model)):
        decoded = forced_logits(network, tokens, labels, sizes, orders)
        assert (forced - decoded).abs().max() < 1e-5


@torch.no_grad()
def test_later_tokens_never_change_earlier_queries() -> None:
    generator = torch.Generator().manual_seed(3)
    model = small_lpd()
    tokens, labels, orders = random_batch(generator)
    sizes = [1, 2, 5, 4, 4]
    before = model.forward_logits(tokens, labels, sizes, orders)
    start = 0
    for size in sizes:
        stop = start + size
        changed = tokens.clone()
        positions = orders[:, start:stop]
        changed.scatter_(1, positions, (tokens.gather(1, positions) + 1) % VOCAB)
        after = model.forward_logits(changed, labels, sizes, orders)
        # Neither the group's own queries nor any earlier ones see the group's tokens.
        assert torch.equal(after[:, :stop], before[:, :stop])
        if stop < NUM_TOKENS:
            assert not torch.allclose(after[:, stop:], before[:, stop:])
        start = stop


SETTINGS = [
    {},
    {"cfg": 3.0},
    {"cfg": 2.0, "cfg_schedule": "constant", "temperature": 0.8, "top_k": 9, "top_p": 0.9},
]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("options", SETTINGS)
def test_an_image_does_not_depend_on_its_batch(options: dict, sampler: str) -> None:
    options = options | {"sampler": sampler}
    generator = torch.Generator().manual_seed(5)
    model = small_lpd()
    _, labels, orders = random_batch(generator, batch_size=6)
    ids = np.array([4, 90, 17, 3, 50_000, 0])
    sizes = [1, 3, 5, 7]
    together = generate(model, labels, orders, sizes, seed=7, image_ids=ids, **options)
    for batch in ([0], [1, 2], [5, 3, 4]):
        alone = generate(
            model, labels[batch], orders[batch], sizes, seed=7, image_ids=ids[batch], **options
        )
        assert torch.equal(alone, together[batch])


def test_seed_and_image_id_both_matter() -> None:
    model = small_lpd()
    labels = torch.zeros(4, dtype=torch.int64)
    orders = torch.arange(NUM_TOKENS).expand(4, -1)
    sizes = [4, 4, 4, 4]
    first = generate(model, labels, orders, sizes, seed=1)
    assert torch.equal(first, generate(model, labels, orders, sizes, seed=1, image_ids=range(4)))
    assert not torch.equal(first, generate(model, labels, orders, sizes, seed=2))
    assert len({tuple(row) for row in first.tolist()}) == 4  # same class and order, other ids
    shifted = generate(model, labels, orders, sizes, seed=1, image_ids=[1, 2, 3, 4])
    assert torch.equal(shifted[:3], first[1:])


def test_guidance_without_labels_is_refused() -> None:
    model = small_lpd()
    orders = np.arange(NUM_TOKENS)[None]
    assert generate(model, None, orders, [NUM_TOKENS]).shape == (1, NUM_TOKENS)
    with pytest.raises(ValueError, match="cfg: found 2.0 without labels"):
        generate(model, None, orders, [NUM_TOKENS], cfg=2.0)


def test_bad_arguments_are_refused() -> None:
    model = small_lpd()
    labels, orders = torch.tensor([0]), np.arange(NUM_TOKENS)[None]
    with pytest.raises(ValueError, match="labels: found 9..9, expected 0..4"):
        generate(model, torch.tensor([9]), orders, [NUM_TOKENS])
    with pytest.raises(ValueError, match="labels"):
        generate(model, torch.tensor([0, 1]), orders, [NUM_TOKENS])
    with pytest.raises(ValueError, match="image_ids"):
        generate(model, labels, orders, [NUM_TOKENS], image_ids=[1, 2])
    with pytest.raises(ValueError):
        generate(model, labels, np.zeros((1, NUM_TOKENS), dtype=int), [NUM_TOKENS])
    with pytest.raises(ValueError):
        generate(model, labels, orders, [NUM_TOKENS - 1])
    with pytest.raises(ValueError, match="sampler: found 'slow', expected one of"):
        generate(model, labels, orders, [NUM_TOKENS], sampler="slow")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_generation_leaves_the_model_as_it_was(sampler: str) -> None:
    model = small_lpd(proj_dropout=0.5).train()
    labels, orders = torch.tensor([1]), np.arange(SIDE * SIDE)[None]
    first = generate(model, labels, orders, [8, 8], seed=3, sampler=sampler)
    again = generate(model, labels, orders, [8, 8], seed=3, sampler=sampler)
    assert model.training
    assert torch.equal(first, again)  # no dropout
    assert not first.requires_grad


def test_bf16_autocast_is_honoured() -> None:
    model = small_lpd()
    labels, orders = torch.tensor([1, 2]), np.stack([np.arange(16)] * 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.new_cache(2).entries.dtype == torch.bfloat16
        tokens = generate(model, labels, orders, [1, 3, 12], cfg=2.0)
    assert tokens.shape == (2, NUM_TOKENS)
    assert tokens.min() >= 0 and tokens.max() < VOCAB
