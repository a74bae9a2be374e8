"""Locality-aware orders against a literal reading of their definition."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from orders import locality
from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders, random_orders
from orders.order_file import validate_orders
from orders.sources import published_repulsion
from tests.unit.orders import literal_reference

# (grid side, group sizes, proximity threshold, repulsion threshold)
SETTINGS = {
    "8x8 in 12": (8, group_sizes(64, 12), 1.0, 1.0),
    "8x8 in 6, r = 2": (8, group_sizes(64, 6), 1.0, 2.0),
    "8x8 in 16, r = 0": (8, group_sizes(64, 16), 1.0, 0.0),
    "8x8, fractional thresholds": (8, group_sizes(64, 12), 1.5, 1.5),
    "8x8, corners count as near": (8, group_sizes(64, 12), 1 / math.sqrt(2), 1.0),
    "8x8, threshold of two corners": (8, group_sizes(64, 12), math.sqrt(2), 1.0),
    "8x8, all near": (8, group_sizes(64, 10), 0.0, 1.0),
    "8x8, none near": (8, group_sizes(64, 10), 50.0, 1.0),
    "8x8, far repulsion": (8, group_sizes(64, 12), 1.0, 9.0),
    "8x8, large late groups": (8, [1, 2, 3, 20, 38], 1.0, 2.0),
    "8x8, uneven": (8, [1, 12, 1, 7, 30, 1, 12], 1.0, 1.0),
    "5x5": (5, group_sizes(25, 8), 1.0, 1.0),
    "5x5, one by one": (5, [1] * 25, 1.0, 1.0),
    "16x16 in 20, r = 2": (16, group_sizes(256, 20), 1.0, 2.0),
}
LARGE = (32, group_sizes(1024, 48), 1.0, 4.0)
settings = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())


def make(setting: tuple, num: int, seed: int = 0) -> np.ndarray:
    side, sizes, proximity, repulsion = setting
    return locality_aware_orders(num, sizes, side, proximity, repulsion, seed)


def make_literally(setting: tuple, num: int, seed: int = 0) -> np.ndarray:
    side, sizes, proximity, repulsion = setting
    rng = random.Random(seed)
    return np.array(
        [literal_reference.one_order(sizes, side, proximity, repulsion, rng) for _ in range(num)]
    )


def choices(setting: tuple, order: np.ndarray) -> list[tuple[tuple[int, int], list]]:
    """Every choice of an order with those the rules allowed."""
    side, sizes, proximity, repulsion = setting
    cells = [divmod(int(position), side) for position in order]
    made, start = [], 0
    for size in sizes:
        decoded = set(cells[:start])
        for at in range(start, start + size):
            group = cells[start:at]
            legal = literal_reference.legal_choices(decoded, group, side, proximity, repulsion)
            made.append((cells[at], legal))
        start += size
    return made


def order_statistics(
    orders: np.ndarray, group_sizes: Sequence[int], grid_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """How near to what is decoded, and how far apart, the positions of each group are.

    Args:
        orders: (M, N) whole numbers: valid orders of a G x G grid.
        group_sizes: K sizes that sum to N.
        grid_size: side of the grid, G.

    Returns:
        Two (M, K) float64 arrays: the mean score of a group's positions against earlier groups
        (method section 6), and the smallest Euclidean distance, in positions, between two of them
        (NaN for groups of one).
    """
    num, num_tokens = orders.shape
    orders = orders.astype(np.int64)
    sizes = np.asarray(group_sizes)
    starts = np.cumsum(sizes) - sizes
    step_of = np.full((num, grid_size + 2, grid_size + 2), len(sizes))
    y, x = np.divmod(orders, grid_size)
    step_of[np.arange(num)[:, None], y + 1, x + 1] = np.repeat(np.arange(len(sizes)), sizes)
    own = step_of[:, 1:-1, 1:-1]
    scores = np.zeros(own.shape)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            if dy or dx:
                rows = slice(1 + dy, grid_size + 1 + dy)
                columns = slice(1 + dx, grid_size + 1 + dx)
                scores += (step_of[:, rows, columns] < own) / math.hypot(dy, dx)
    in_order = np.take_along_axis(scores.reshape(num, num_tokens), orders, axis=1)
    mean_scores = np.add.reduceat(in_order, starts, axis=1) / sizes

    smallest = np.full((num, len(sizes)), np.nan)
    for step, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size < 2:
            continue
        squared = np.full(num, np.iinfo(np.int64).max)
        for offset in range(1, size):
            first, second = slice(start, start + size - offset), slice(start + offset, start + size)
            apart = (y[:, first] - y[:, second]) ** 2 + (x[:, first] - x[:, second]) ** 2
            squared = np.minimum(squared, apart.min(axis=1))
        smallest[:, step] = np.sqrt(squared)
    return mean_scores, smallest


@settings
def test_every_position_once(setting: tuple) -> None:
    validate_orders(make(setting, 200), setting[0] ** 2)


@settings
def test_every_choice_is_legal_and_ties_are_random(setting: tuple) -> None:
    num = 3 if setting[0] == 16 else 20
    quantiles = []
    for order in make(setting, num):
        for chosen, legal in choices(setting, order):
            assert chosen in legal
            if len(legal) > 1:
                # Where among its equals the choice lies; of mean 0 and variance 1 if uniform.
                centred = legal.index(chosen) - (len(legal) - 1) / 2
                quantiles.append(centred / math.sqrt((len(legal) ** 2 - 1) / 12))
    assert len(quantiles) > 100
    assert abs(np.mean(quantiles)) * math.sqrt(len(quantiles)) < 4.5
    assert np.var(quantiles) == pytest.approx(1, abs=5 / math.sqrt(len(quantiles)))


@pytest.mark.parametrize("name", ["8x8 in 12", "8x8, large late groups", "5x5"])
def test_the_literal_orders_are_legal_too(name: str) -> None:
    for order in make_literally(SETTINGS[name], 5):
        assert all(chosen in legal for chosen, legal in choices(SETTINGS[name], order))


@settings
def test_statistics_agree_with_the_literal_reading(setting: tuple) -> None:
    side, sizes = setting[:2]
    literal = make_literally(setting, 40 if side == 16 else 200)
    for ours, theirs in zip(
        order_statistics(make(setting, 2000), sizes, side),
        order_statistics(literal, sizes, side),
        strict=True,
    ):
        both = np.concatenate([ours, theirs])
        error = both.std(axis=0) * math.sqrt(1 / len(ours) + 1 / len(theirs))
        difference = np.abs(ours.mean(axis=0) - theirs.mean(axis=0))
        several = ~np.isnan(difference)
        assert (difference[several] <= 4.5 * error[several] + 1e-9).all()


@pytest.mark.parametrize("sizes", [[1, 2, 6], [1, 1, 1, 1, 5]])
def test_whole_distribution_of_a_tiny_grid(sizes: list[int]) -> None:
    setting, shown = (3, sizes, 1.0, 1.0), 9 - sizes[-1]
    ours = Counter(tuple(order[:shown]) for order in make(setting, 4000).tolist())
    theirs = Counter(tuple(order[:shown]) for order in make_literally(setting, 4000).tolist())
    outcomes = sorted(ours.keys() | theirs.keys())
    assert len(outcomes) > 20
    table = [[counts[outcome] for outcome in outcomes] for counts in (ours, theirs)]
    assert chi2_contingency(table).pvalue > 1e-4


def test_forced_choices_on_two_by_two() -> None:
    # After one position, its two edge neighbours (score 1) repel each other at r = 1, and the
    # opposite corner scores too little: the fill adds the one farther from the first of the group.
    for order in make((2, [1, 2, 1], 1.0, 1.0), 50):
        first, second, third, _ = order.tolist()
        assert second in {first ^ 1, first ^ 2}
        assert third == second ^ 3


def test_fill_takes_low_scores_before_skipped_positions() -> None:
    # After 1 (middle of the top row), 0, 2 and 4 score 1. The centre 4 repels all others, which
    # leaves four corners equally far from it: 0 and 2 were skipped, 6 and 8 have low scores.
    seen = set()
    for order in make((3, [1, 2, 6], 1.0, 1.0), 400).tolist():
        if order[0] == 1 and order[1] == 4:
            seen.add(order[2])
    assert seen == {6, 8}


def test_fill_prefers_higher_scores_among_low_ones() -> None:
    # As above, but nothing counts as near: all four corners have low scores, 0 and 2 the higher.
    seen = set()
    for order in make((3, [1, 2, 6], 50.0, 1.0), 1500).tolist():
        if order[0] == 1 and order[1] == 4:
            seen.add(order[2])
    assert seen == {0, 2}


def test_statistics_are_those_of_the_literal_reading() -> None:
    for side, sizes, *_ in SETTINGS.values():
        orders = random_orders(2, side * side, seed=3)
        scores, smallest = order_statistics(orders.astype(np.uint16), sizes, side)
        for row, order in enumerate(orders.tolist()):
            expected = literal_reference.statistics(order, sizes, side)
            np.testing.assert_allclose(scores[row], expected[0], atol=1e-12)
            np.testing.assert_allclose(smallest[row], expected[1], atol=1e-12)


def test_rows_depend_on_seed_and_image_only(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = SETTINGS["8x8 in 12"]
    side, sizes, *thresholds = setting
    orders = make(setting, 300)
    np.testing.assert_array_equal(make(setting, 100), orders[:100])
    picked = locality_aware_orders(3, sizes, side, *thresholds, image_ids=[250, 7, 7])
    np.testing.assert_array_equal(picked, orders[[250, 7, 7]])
    monkeypatch.setattr(locality, "_BATCH_POSITIONS", 7 * 64)
    np.testing.assert_array_equal(make(setting, 300), orders)
    assert len(np.unique(orders, axis=0)) == 300
    assert not (make(setting, 300, seed=1) == orders).all(axis=1).any()


@pytest.mark.parametrize(
    ("setting", "digest"),
    [
        (SETTINGS["8x8 in 12"], "db1e3e855e241368"),
        (SETTINGS["8x8, fractional thresholds"], "5e61f5459731057f"),
        (SETTINGS["8x8, none near"], "997cb0e7cc6f4433"),
        (SETTINGS["5x5"], "102281d6bb5d45dc"),
        (SETTINGS["16x16 in 20, r = 2"], "3c5d628374fd7f48"),
        (LARGE, "4691142449294363"),
    ],
)
def test_one_seed_gives_one_file_for_ever(setting: tuple, digest: str) -> None:
    side, sizes, *thresholds = setting
    ids = np.arange(20) * 1000
    orders = locality_aware_orders(20, sizes, side, *thresholds, seed=7, image_ids=ids)
    assert hashlib.sha256(orders.astype("<u2").tobytes()).hexdigest()[:16] == digest


def test_random_orders() -> None:
    orders = random_orders(3000, 9)
    validate_orders(orders, 9)
    assert orders.dtype == np.int64
    # Each position comes at each place equally often.
    counts = np.stack([np.bincount(column, minlength=9) for column in orders.T])
    assert chi2_contingency(counts).pvalue > 1e-4
    np.testing.assert_array_equal(random_orders(2, 9, image_ids=[2999, 5]), orders[[2999, 5]])
    assert not (random_orders(3000, 9, seed=1) == orders).all()


@pytest.mark.parametrize("side", [1, 2])
def test_tiny_grids(side: int) -> None:
    orders = locality_aware_orders(4, [1] * side**2, side)
    assert sorted(orders[0].tolist()) == list(range(side**2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 0}, "found 0 orders"),
        ({"group_sizes": [1, 2]}, "sum to 3, expected a sum of 16"),
        ({"group_sizes": [1, 0, 15]}, "group 1: found size 0"),
        ({"proximity_threshold": -1.0}, "proximity threshold -1.0"),
        ({"repulsion_threshold": math.nan}, "repulsion threshold nan"),
        ({"repulsion_threshold": math.inf}, "repulsion threshold inf"),
        ({"image_ids": [1]}, r"shape \(1,\), expected \(2,\)"),
        ({"grid_size": 2049}, "found 2049 tokens a side, expected at most 2048"),
    ],
)
def test_bad_settings(options: dict, message: str) -> None:
    good = {"num": 2, "group_sizes": [1, 15], "grid_size": 4}
    with pytest.raises(ValueError, match=message):
        locality_aware_orders(**(good | options))


def test_published_repulsion() -> None:
    assert published_repulsion(256, 20) == published_repulsion(256, 32) == 2
    assert published_repulsion(1024, 48) == 4
    assert published_repulsion(256, 64) == published_repulsion(64, 12) == 1
