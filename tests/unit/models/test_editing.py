"""Editing: what is kept, what it equals, and that images do not disturb one another."""

import itertools

import numpy as np
import pytest
import torch

from models.decoding import SAMPLERS, UNDECIDED, generate
from models.editing import edit, edit_steps
from orders.group_sizes import default_steps, group_sizes, remaining_group_sizes
from orders.locality import locality_aware_orders
from orders.sources import published_repulsion
from tests.unit.models.small import NUM_TOKENS, SIDE, VOCAB, ProductDtypes, random_batch, small_lpd

OPTIONS = {"cfg": 3.0, "seed": 7}


def masked_batch(counts: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, masks with these numbers of masked tokens, labels."""
    tokens, labels, orders = random_batch(batch_size=len(counts))
    mask = orders < torch.tensor(counts)[:, None]  # a random permutation's smallest
    assert mask.sum(dim=1).tolist() == counts
    return tokens, mask, labels


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [None, 1, 3, 99])
def test_only_what_stands_under_the_mask_changes(num_steps: int | None, sampler: str) -> None:
    tokens, mask, labels = masked_batch([1, 5, 5, 15, 0])
    given = tokens.clone()
    options = {**OPTIONS, "num_steps": num_steps, "sampler": sampler}
    result = edit(small_lpd(), tokens, mask, labels, **options)
    assert torch.equal(result[~mask], tokens[~mask])
    assert (result[mask] >= 0).all() and (result[mask] < VOCAB).all()
    assert not torch.equal(result[mask], tokens[mask])
    assert torch.equal(tokens, given)
    # What stood under it does not matter.
    no_codes = tokens.masked_fill(mask, UNDECIDED)
    assert torch.equal(edit(small_lpd(), no_codes, mask, labels, **options), result)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(sampler: str) -> None:
    tokens, mask, labels = masked_batch([3, 16, 3, 8, 0, 8])
    ids = np.array([4, 90, 17, 3, 50_000, 0])
    model, options = small_lpd(), {**OPTIONS, "sampler": sampler}
    together = edit(model, tokens, mask, labels, image_ids=ids, **options)
    for rows in ([0], [1], [3], [2, 1], [5, 3, 4, 0]):
        alone = edit(model, tokens[rows], mask[rows], labels[rows], image_ids=ids[rows], **options)
        assert torch.equal(alone, together[rows])


@pytest.mark.parametrize(("img_size", "steps"), [(64, None), (64, 20), (16, None), (16, 5)])
def test_a_white_mask_is_plain_generation(img_size: int, steps: int | None) -> None:
    model = small_lpd(img_size=img_size)
    num_tokens, side = model.grid.num_tokens, model.grid.side
    tokens, labels = torch.zeros(2, num_tokens, dtype=torch.int64), torch.tensor([1, 4])
    made = edit(model, tokens, tokens == 0, labels, num_steps=steps, **OPTIONS)
    sizes = group_sizes(num_tokens, steps or default_steps(num_tokens))
    repulsion = published_repulsion(num_tokens, len(sizes))
    orders = locality_aware_orders(2, sizes, side, repulsion_threshold=repulsion, seed=7)
    assert torch.equal(made, generate(model, labels, orders, sizes, **OPTIONS))


def test_it_follows_the_forced_pass_on_its_order() -> None:
    """Greedily, masked tokens are the best of one pass with group sizes [known, g_1, ...]."""
    model = small_lpd()
    tokens, mask, labels = masked_batch([9, 9])
    made = edit(model, tokens, mask, labels, top_k=1, repulsion_threshold=1.0)
    sizes = remaining_group_sizes(NUM_TOKENS, 7)
    assert sum(sizes) == 9
    known = torch.nonzero(~mask)[:, 1].view(2, 7).numpy()
    orders = torch.from_numpy(locality_aware_orders(2, sizes, SIDE, known=known))
    with torch.no_grad():
        logits = model.forward_logits(made, labels, [7, *sizes], orders)
    assert torch.equal(made.gather(1, orders)[:, 7:], logits.argmax(dim=-1)[:, 7:])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_fill_in_the_result(sampler: str) -> None:
    tokens, mask, labels = masked_batch([12, 2, 0, 12])
    model, options = small_lpd(), {**OPTIONS, "num_steps": 4, "sampler": sampler}
    result = edit(model, tokens, mask, labels, **options)
    stages = list(edit_steps(model, tokens, mask, labels, **options))
    assert torch.equal(stages[-1], result)
    left = torch.stack([(stage == UNDECIDED).sum(dim=1) for stage in stages]).tolist()
    sizes = remaining_group_sizes(NUM_TOKENS, 4, 4)
    todo = zip((12 - np.cumsum(sizes)).tolist(), [1, 0, 0, 0], strict=True)
    assert left == [[rest, few, 0, rest] for rest, few in todo]
    for stage in stages:
        assert torch.equal(stage[stage != UNDECIDED], result[stage != UNDECIDED])
    (only,) = edit_steps(model, tokens, mask & False, labels, **options)  # a black mask
    assert torch.equal(only, tokens)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("when", list(itertools.product([False, True], repeat=3))[1:])
def test_inference_mode_may_hold_at_the_call_in_the_first_step_or_later(when, sampler) -> None:
    options = {**OPTIONS, "num_steps": 4, "sampler": sampler}
    arguments = small_lpd(), *masked_batch([12, 2, 0, 12])
    call, first, later = map(torch.inference_mode, when)
    with call:
        steps = edit_steps(*arguments, **options)
    with first:
        next(steps)
    with later:
        *_, last = steps
    assert torch.equal(last, edit(*arguments, **options))


def test_the_first_step_chooses_the_dtype() -> None:
    with ProductDtypes() as products:
        steps = edit_steps(small_lpd(), *masked_batch([12, 2, 0, 12]), **OPTIONS, num_steps=4)
        assert products.found == []
        with torch.autocast("cpu", torch.bfloat16):
            next(steps)
        assert len(list(steps)) == 3
    assert products.found == [torch.bfloat16]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.zeros(2, 9).long()}, r"tokens: .* expected whole numbers \(2, 16\)"),
        ({"tokens": torch.full((2, 16), VOCAB)}, "known: found"),
        ({"mask": torch.zeros(2, 16).int()}, r"mask: found torch.int32 .* expected bool \(2, 16\)"),
        ({"labels": [1]}, r"labels: found torch.int64 of shape \(1,\), expected whole .* \(2,\)"),
        ({"labels": [5, 6]}, r"labels: found 5\.\.6, expected 0\.\.4"),
        ({"labels": None, "cfg": 2.0}, "cfg: found 2.0 without labels"),
        ({"image_ids": [1]}, "image_ids: found int64 of shape"),
        ({"num_steps": 0}, "num_steps: found 0, expected a whole number"),
        ({"repulsion_threshold": -1.0}, "repulsion threshold -1.0"),
    ],
)
def test_bad_arguments_are_refused(change: dict, message: str) -> None:
    good = dict(zip(("tokens", "mask", "labels"), masked_batch([3, 3]), strict=True))
    for function in (edit, edit_steps):
        with pytest.raises(ValueError, match=message):
            function(small_lpd(), **good | change)
