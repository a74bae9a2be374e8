"""The likelihood of a plan is the probability with which `generate` draws an image under it."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare

from models import decoding
from models.decoding import generate
from models.likelihood import token_nll
from models.lpd import LPD
from orders.plan import GenerationPlan
from tests.unit.models.small import random_batch, random_split, small_lpd
from util.geometry import TokenGrid

POSITIONS, CODES = 3, 4
# All 64 outcomes, (64, 3), raster order.
OUTCOMES = torch.tensor(list(itertools.product(range(CODES), repeat=POSITIONS)))
SIZES = ([1, 1, 1], [1, 2], [2, 1], [3])
ORDERS = ([0, 1, 2], [2, 0, 1], [1, 2, 0])
# The uniform numbers are float32 in [0, 1): a bisection cannot do better.
HALVINGS = 24


class ThreePositions(TokenGrid):
    """A row of three, which no square is."""

    @property
    def num_tokens(self) -> int:
        return POSITIONS


def three_positions(**options: object) -> LPD:
    """Plans differ clearly on it, and yet no outcome is too rare to be seen."""
    model = small_lpd(vqgan_vocab_size=CODES, img_size=8, decoder_embed_dim=16, **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.normal_(model.token_emb.weight, std=3)
    model.grid = ThreePositions(8, 4, CODES)
    return model


def drawn_probabilities(
    monkeypatch: pytest.MonkeyPatch, model: LPD, label: int | None, plan: tuple, sampler: str
) -> np.ndarray:
    """The probability of each outcome, (64,), read off `generate` alone.

    `generate` is a function of three uniform numbers, one per position. Given the codes at the
    earlier places of the order, the code at the next is a step function of its number; where it
    steps is found by bisection, and the lengths between steps multiply to the outcome's volume.
    """
    order, sizes = plan

    def codes_at(uniforms: np.ndarray) -> np.ndarray:
        drawn = uniforms.astype(np.float32)
        monkeypatch.setattr(decoding.streams, "uniforms", lambda *_, **__: drawn)
        orders = np.tile(order, (len(drawn), 1))
        labels = None if label is None else torch.full((len(drawn),), label)
        return generate(model, labels, orders, sizes, sampler=sampler).numpy()

    # Per sequence of codes at the places so far: numbers that give it, and its probability.
    inside, volume = np.full((1, POSITIONS), 0.5), np.ones(1)
    for position in order:
        rows = np.repeat(inside, CODES - 1, axis=0)
        wanted = np.tile(np.arange(1, CODES), len(inside))
        low, high = np.zeros(len(rows)), np.ones(len(rows))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            rows[:, position] = middle
            reached = codes_at(rows)[:, position] >= wanted
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
        steps = high.reshape(-1, CODES - 1)
        edges = np.pad(steps, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1)))
        inside = np.repeat(inside, CODES, axis=0)
        inside[:, position] = ((edges[:, :-1] + edges[:, 1:]) / 2).ravel()
        volume = np.repeat(volume, CODES) * np.diff(edges).ravel()
    return volume.reshape((CODES,) * POSITIONS).transpose(np.argsort(order)).ravel()


@pytest.mark.parametrize("sampler", ["plain", "fast"])
@pytest.mark.parametrize(("label", "blind"), [(1, False), (3, True), (None, False)])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_likelihood_is_what_generate_draws_with(
    monkeypatch, sizes, label, blind, sampler
) -> None:
    model, order = three_positions(blind_queries=blind), ORDERS[len(sizes) - 1]
    drawn = drawn_probabilities(monkeypatch, model, label, (order, sizes), sampler)
    assert drawn.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(nll(model, label, order, sizes).neg().exp(), drawn, atol=2e-6)


def nll(model: LPD, label: int | None, order: list[int], sizes: list[int]) -> torch.Tensor:
    """Of all outcomes under a plan, (64,) float64."""
    plan = GenerationPlan.build(torch.tensor([order]).expand(64, -1), sizes, POSITIONS)
    labels = None if label is None else torch.full((64,), label)
    return token_nll(model, OUTCOMES, labels, plan).double().sum(dim=1)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_frequencies_over_many_seeds_agree(sizes: list[int], order: list[int]) -> None:
    model = three_positions()
    counts = np.zeros(64)
    for seed in range(20):
        orders, labels = np.tile(order, (3000, 1)), torch.ones(3000, dtype=torch.int64)
        drawn = generate(model, labels, orders, sizes, seed=seed)
        numbers = (drawn * torch.tensor([16, 4, 1])).sum(dim=1)
        counts += np.bincount(numbers.numpy(), minlength=64)

    def p_value(sizes: list[int]) -> float:
        expected = torch.exp(-nll(model, 1, order, sizes)).numpy()
        return chisquare(counts, expected / expected.sum() * counts.sum()).pvalue

    assert p_value(sizes) > 1e-3
    # The test can tell: the frequencies are not those of any other plan.
    for others in SIZES:
        assert others == sizes or p_value(others) < 1e-6


@pytest.mark.parametrize("images_at_a_time", [2, 9])
def test_it_is_the_training_loss_by_token_without_dropout(images_at_a_time, monkeypatch) -> None:
    monkeypatch.setattr("models.likelihood.LOGITS_AT_A_TIME", images_at_a_time * 16 * 23)
    model, generator = small_lpd(proj_dropout=0.5), torch.Generator().manual_seed(0)
    for _ in range(5):
        tokens, labels, orders = random_batch(generator)
        plan = GenerationPlan.build(orders, random_split(generator), 16)
        found = token_nll(model.train(), tokens, labels, plan)
        assert model.training and found.dtype == torch.float32
        given = tokens, labels, plan.group_sizes, orders
        with torch.no_grad():
            loss, logits = model.eval()(*given), model.forward_logits(*given)
        expected = F.cross_entropy(logits.mT, tokens.gather(1, orders), reduction="none")
        torch.testing.assert_close(found, expected)
        assert found.mean().item() == pytest.approx(loss.item(), abs=1e-5)
