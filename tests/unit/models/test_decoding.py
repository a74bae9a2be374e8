"""Decoding equals the teacher-forced pass, from known tokens too, whatever surrounds an image."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch

from models.decoding import SAMPLERS, UNDECIDED, generate, generate_steps
from models.fast import FastPath
from models.sampling import SamplingSettings
from tests.forced import forced_logits
from tests.unit.models.small import NUM_TOKENS, VOCAB, random_batch, random_split, small_lpd

SIZES, STRONG = [1, 3, 5, 7], SamplingSettings(cfg=3.0)


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("num_known", [0, 1, 5, NUM_TOKENS - 1])
@torch.no_grad()
def test_decoding_equals_the_teacher_forced_pass(num_known, labelled, blind) -> None:
    for seed in range(4 if num_known == 0 else 1):
        generator = torch.Generator().manual_seed(num_known + seed)
        model = small_lpd(seed, blind_queries=blind)
        tokens, labels, orders = random_batch(generator)
        labels = labels if labelled else None  # the two halves of guidance
        sizes = random_split(generator, NUM_TOKENS - num_known)
        groups = [num_known, *sizes] if num_known else sizes
        forced = model.forward_logits(tokens, labels, groups, orders)[:, num_known:]
        assert forced.std() > 0.5  # the comparison would be idle between constants
        for network in (model, FastPath.of(model).network(model)):
            decoded = forced_logits(network, tokens, labels, sizes, orders, num_known)
            assert (forced - decoded).abs().max() < 1e-5


@torch.no_grad()
def test_later_tokens_never_change_earlier_queries() -> None:
    model = small_lpd()
    tokens, labels, orders = random_batch(3)
    sizes = [1, 2, 5, 4, 4]
    before = model.forward_logits(tokens, labels, sizes, orders)
    for start, stop in itertools.pairwise([0, 1, 3, 8, 12, 16]):
        positions = orders[:, start:stop]
        other = (tokens.gather(1, positions) + 1) % VOCAB
        after = model.forward_logits(tokens.scatter(1, positions, other), labels, sizes, orders)
        # Neither the group's own queries nor any earlier ones see the group's tokens.
        assert torch.equal(after[:, :stop], before[:, :stop])
        if stop < NUM_TOKENS:
            assert not torch.allclose(after[:, stop:], before[:, stop:])


SETTINGS = [
    {},
    {"cfg": 3.0},
    {"cfg": 2.0, "cfg_schedule": "constant", "temperature": 0.8, "top_k": 9, "top_p": 0.9},
]


@pytest.mark.parametrize("options", SETTINGS)
def test_the_forced_pass_predicts_the_generated_tokens(options: dict) -> None:
    """Greedily, every token of `generate` is the best of the pass over its own result."""
    model, num_known, sizes = small_lpd(), 6, [2, 3, 5]
    tokens, labels, orders = random_batch(1)
    known = tokens.gather(1, orders[:, :num_known])
    made = generate(model, labels, orders, sizes, known=known, **options | {"top_k": 1})
    assert torch.equal(made.gather(1, orders)[:, :num_known], known)
    with torch.no_grad():
        cond, uncond = (
            model.forward_logits(made, given, [num_known, *sizes], orders)
            for given in (labels, None)
        )
    # Token j of the order, the known ones counted, has strength 1 + (cfg - 1) * j / N.
    scale = torch.full((NUM_TOKENS,), options.get("cfg", 1.0))
    if options.get("cfg_schedule") != "constant":
        scale = 1 + (scale - 1) * torch.arange(NUM_TOKENS) / NUM_TOKENS
    best = (uncond + scale[:, None] * (cond - uncond)).argmax(dim=-1)
    assert torch.equal(made.gather(1, orders)[:, num_known:], best[:, num_known:])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_known", [0, 5])
@pytest.mark.parametrize("options", SETTINGS)
def test_an_image_does_not_depend_on_its_batch(options, num_known, sampler, device) -> None:
    model = small_lpd().to(device)
    tokens, labels, orders = random_batch(5, batch_size=6)
    known = tokens.gather(1, orders[:, :num_known])
    ids = np.array([4, 90, 17, 3, 50_000, 0])
    sizes = [4, 7] if num_known else SIZES

    def made(rows: slice | list[int]) -> torch.Tensor:
        given = {"known": known[rows], "image_ids": ids[rows], "seed": 7, "sampler": sampler}
        return generate(model, labels[rows], orders[rows], sizes, **given, **options)

    together = made(slice(None))
    for rows in ([0], [1, 2], [5, 3, 4]):
        assert torch.equal(made(rows), together[rows])


def test_seed_ids_and_settings_as_a_value_or_its_fields_decide() -> None:
    model, (_, labels, orders) = small_lpd(), random_batch()
    made = partial(generate, model, labels, orders, SIZES)
    expected = made(cfg=3.0, top_k=4)
    for sampling, fields in ((SamplingSettings(cfg=3.0, top_k=4), {}), (STRONG, {"top_k": 4})):
        assert torch.equal(made(sampling, image_ids=range(3), **fields), expected)
        *_, last = generate_steps(model, labels, orders, SIZES, sampling, **fields)
        assert torch.equal(last, expected)
    assert not torch.equal(made(cfg=3.0, top_k=4, seed=1), expected)
    assert not torch.equal(made(cfg=3.0, top_k=4, image_ids=[3, 4, 5]), expected)
    with pytest.raises(TypeError, match="strength"):
        made(strength=3.0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_known", [0, 6, NUM_TOKENS])
def test_steps_fill_in_the_result(num_known: int, sampler: str) -> None:
    model = small_lpd(proj_dropout=0.5).train()
    tokens, labels, orders = random_batch(3)
    options = {"cfg": 2.0, "seed": 5, "image_ids": [4, 9, 2], "sampler": sampler}
    if num_known:
        options["known"] = tokens.gather(1, orders[:, :num_known])
    sizes = [1, 2, NUM_TOKENS - num_known - 3] if num_known < NUM_TOKENS else []
    result = generate(model, labels, orders, sizes, **options)
    assert model.training and not result.requires_grad
    stages = []
    for stage in generate_steps(model, labels, orders, sizes, **options):
        assert model.training and torch.is_grad_enabled()  # between steps all is as it was
        stages.append(stage)
    assert torch.equal(stages[-1], result)  # no dropout
    expected, done = result.gather(1, orders), num_known
    assert torch.equal(expected[:, :done], tokens.gather(1, orders)[:, :done])
    for stage, size in zip(stages, sizes or [0], strict=True):
        in_order, done = stage.gather(1, orders), done + size
        assert torch.equal(in_order[:, :done], expected[:, :done])
        assert (in_order[:, done:] == UNDECIDED).all()


@pytest.mark.parametrize("options", SETTINGS[:2])
def test_bf16_autocast_is_honoured(options: dict) -> None:
    model = small_lpd()
    tokens, labels, orders = random_batch(2)
    given = {"known": tokens.gather(1, orders[:, :7]), **options}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.new_cache(2).entries.dtype == torch.bfloat16
        whole = generate(model, labels, orders, [2, 7], **given)
        *_, last = generate_steps(model, labels, orders, [2, 7], **given)
    assert torch.equal(whole, last)
    assert whole.min() >= 0 and whole.max() < VOCAB


ORDER, KNOWN = np.arange(NUM_TOKENS)[None], torch.zeros(1, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None, "cfg": 2.0}, "cfg: found 2.0 without labels, expected 1"),
        ({"labels": [9]}, "labels: found 9..9, expected 0..4"),
        ({"labels": [0, 1]}, r"labels: .* expected whole numbers \(1,\)"),
        ({"labels": [0.0]}, "labels: found torch.float32"),
        ({"image_ids": [1, 2]}, r"image_ids: found int64 of shape \(2,\)"),
        ({"orders": 0 * ORDER}, "found position 0 repeated"),
        ({"group_sizes": [NUM_TOKENS - 1]}, "sum"),
        ({"seed": 1.5}, "seed: found float64"),
        ({"seed": 2**70, "orders": None}, "seed: found object"),
        ({"top_k": 2.5}, "top_k: found 2.5, expected 0 or a whole number"),
        ({"sampler": "slow"}, "sampler: found 'slow', expected one of"),
        ({"labels": None, "orders": None}, "orders: found none, and no labels or image_ids"),
        ({"orders": None, "known": KNOWN}, "orders: found none, expected those that begin"),
        ({"known": KNOWN, "group_sizes": [16]}, "sum"),
        ({"known": KNOWN[:0]}, r"known: found torch.int64 of .*\(0, 4\)"),
        ({"known": KNOWN.float()}, "known: found torch.float32"),
        ({"known": KNOWN - 1}, r"known: found -1\.\.-1, expected 0\.\.22"),
        ({"known": KNOWN + VOCAB}, r"known: found 23\.\.23"),
    ],
)
def test_bad_arguments_are_refused(change: dict, message: str) -> None:
    sizes = [12 if "known" in change else NUM_TOKENS]
    good = {"labels": [0], "orders": ORDER, "group_sizes": sizes}
    for function in (generate, generate_steps):
        with pytest.raises(ValueError, match=message):
            function(small_lpd(), **good | change)


def test_one_label_and_numbers_of_numpy() -> None:
    model = small_lpd()
    assert torch.equal(generate(model, 1, None, np.int64(6)), generate(model, [1], None, 6))
