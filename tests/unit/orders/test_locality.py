"""Locality-aware orders against a literal reading of their definition."""

import hashlib
import math
import random
from collections import Counter
from itertools import product

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from orders.group_sizes import group_sizes, remaining_group_sizes
from orders.locality import locality_aware_orders, random_orders
from orders.order_file import validate_orders
from orders.statistics import group_distances
from tests.unit.orders.literal_reference import legal_choices, one_order

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


def outside(side: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """Raster positions outside a rectangle."""
    masked = np.zeros((side, side), dtype=bool)
    masked[top:bottom, left:right] = True
    return np.flatnonzero(~masked)


def scattered(side: int, count: int) -> np.ndarray:
    return np.random.default_rng(count).permutation(side * side)[:count]


# (grid side, known positions, steps for the rest, thresholds)
AFTER_KNOWN = [
    (8, outside(8, 4, 0, 8, 8), None, 50.0, 1.0),  # none near
    (8, outside(8, 4, 0, 8, 8), None, 0.0, 0.0),  # all near
    (8, outside(8, 2, 2, 6, 7), None, 1.0, 2.0),  # a hole
    (8, outside(8, 2, 2, 6, 7), 1, 1.0, 1.0),  # at once
    (8, outside(8, 0, 0, 7, 8), 6, 1.5, 1.0),  # all but a row
    (8, scattered(8, 30), 5, 1.0, 1.0),
    (8, np.array([63]), None, 1.0, 1.0),  # nearly nothing known
    (5, outside(5, 1, 1, 4, 4), 9, 1.0, 1.0),  # one by one
    (16, outside(16, 5, 5, 16, 16), None, 1.0, 2.0),
]


def make(setting: tuple, num: int, **options: object) -> np.ndarray:
    side, sizes, *thresholds = setting
    return locality_aware_orders(num, sizes, side, *thresholds, **options)


@pytest.mark.parametrize(
    ("setting", "known"),
    [
        *((setting, np.empty(0, dtype=np.int64)) for setting in SETTINGS.values()),
        *(
            ((side, remaining_group_sizes(side**2, len(known), steps), *thresholds), known)
            for side, known, steps, *thresholds in AFTER_KNOWN
        ),
    ],
)
def test_every_choice_is_legal_and_ties_are_random(setting: tuple, known: np.ndarray) -> None:
    side, sizes, *thresholds = setting
    rows = np.tile(known, (4 if side == 16 else 20, 1))
    orders = make(setting, len(rows), known=rows)
    validate_orders(orders, side**2)
    assert (orders[:, : len(known)] == known).all()
    quantiles = []
    for order in orders.tolist():
        cells, start = [divmod(position, side) for position in order], len(known)
        for size in sizes:
            for at in range(start, start + size):
                legal = legal_choices({*cells[:start]}, cells[start:at], side, *thresholds)
                assert cells[at] in legal
                if len(legal) > 1:
                    # Where among its equals the choice lies: of mean 0 and variance 1 if uniform.
                    centred = legal.index(cells[at]) - (len(legal) - 1) / 2
                    quantiles.append(centred / math.sqrt((len(legal) ** 2 - 1) / 12))
            start += size
    if len(quantiles) > 100:
        assert abs(np.mean(quantiles)) * math.sqrt(len(quantiles)) < 4.5
        assert np.var(quantiles) == pytest.approx(1, abs=5 / math.sqrt(len(quantiles)))


def make_literally(setting: tuple, num: int) -> np.ndarray:
    side, sizes, *thresholds = setting
    rng = random.Random(0)
    return np.array([one_order(sizes, side, *thresholds, rng) for _ in range(num)])


def mean_scores(orders: np.ndarray, sizes: list[int], side: int) -> np.ndarray:
    """(M, K): the mean score of each group against earlier groups."""
    num, groups = len(orders), np.repeat(np.arange(len(sizes)), sizes)
    step_of = np.full((num, side + 2, side + 2), len(sizes))
    y, x = np.divmod(orders.astype(np.int64), side)
    step_of[np.arange(num)[:, None], y + 1, x + 1] = groups
    scores = np.zeros(orders.shape)
    for dy, dx in product((-1, 0, 1), repeat=2):
        if dy or dx:
            around = step_of[np.arange(num)[:, None], y + 1 + dy, x + 1 + dx]
            scores += (around < groups) / math.hypot(dy, dx)
    return np.add.reduceat(scores, np.cumsum(sizes) - sizes, axis=1) / sizes


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_statistics_agree_with_the_literal_reading(setting: tuple) -> None:
    side, sizes = setting[:2]
    orders, literal = make(setting, 2000), make_literally(setting, 40 if side == 16 else 200)
    within = (group_distances(rows, sizes)[1] for rows in (orders, literal))
    scores = (mean_scores(rows, sizes, side) for rows in (orders, literal))
    for ours, theirs in (scores, within):
        both = np.concatenate([ours, theirs])
        error = both.std(axis=0) * math.sqrt(1 / len(ours) + 1 / len(theirs))
        difference = np.abs(ours.mean(axis=0) - theirs.mean(axis=0))
        several = ~np.isnan(difference)
        assert (difference[several] <= 4.5 * error[several] + 1e-9).all()


@pytest.mark.parametrize("sizes", [[1, 2, 6], [1, 1, 1, 1, 5]])
def test_whole_distribution_of_a_tiny_grid(sizes: list[int]) -> None:
    setting, shown = (3, sizes, 1.0, 1.0), 9 - sizes[-1]
    ours, theirs = (
        Counter(tuple(order[:shown]) for order in orders)
        for orders in (make(setting, 4000).tolist(), make_literally(setting, 4000).tolist())
    )
    outcomes = sorted(ours.keys() | theirs.keys())
    assert len(outcomes) > 20
    table = [[counts[outcome] for outcome in outcomes] for counts in (ours, theirs)]
    assert chi2_contingency(table).pvalue > 1e-4


def test_choices_by_hand() -> None:
    # After one position, its two edge neighbours (score 1) repel each other at r = 1, and the
    # opposite corner scores too little: the fill adds the one farther from the first of the group.
    for order in make((2, [1, 2, 1], 1.0, 1.0), 50):
        first, second, third, _ = order.tolist()
        assert second in {first ^ 1, first ^ 2}
        assert third == second ^ 3
    # After 1 (middle of the top row), 0, 2 and 4 score 1. The centre 4 repels all others, which
    # leaves four corners equally far from it: 0 and 2 were skipped, 6 and 8 have low scores, which
    # go first; but if nothing counts as near, all have low scores, and those of 0 and 2 are higher.
    for proximity, num, corners in ((1.0, 400, {6, 8}), (50.0, 1500, {0, 2})):
        orders = make((3, [1, 2, 6], proximity, 1.0), num).tolist()
        assert {order[2] for order in orders if order[:2] == [1, 4]} == corners


@pytest.mark.parametrize(
    ("setting", "digest"),
    [
        (SETTINGS["8x8 in 12"], "db1e3e855e241368"),
        (SETTINGS["8x8, fractional thresholds"], "5e61f5459731057f"),
        (SETTINGS["8x8, none near"], "997cb0e7cc6f4433"),
        (SETTINGS["5x5"], "102281d6bb5d45dc"),
        (SETTINGS["16x16 in 20, r = 2"], "3c5d628374fd7f48"),
        ((32, group_sizes(1024, 48), 1.0, 4.0), "4691142449294363"),
    ],
)
def test_one_seed_gives_one_file_for_ever(setting: tuple, digest: str) -> None:
    orders = make(setting, 20, seed=7, image_ids=np.arange(20) * 1000)
    assert hashlib.sha256(orders.astype("<u2").tobytes()).hexdigest()[:16] == digest


def test_random_orders() -> None:
    orders = random_orders(3000, 25)  # made in two parts
    validate_orders(orders, 25)
    assert orders.dtype == np.int64
    # Each position comes at each place equally often.
    counts = np.stack([np.bincount(column, minlength=25) for column in orders.T])
    assert chi2_contingency(counts).pvalue > 1e-4
    np.testing.assert_array_equal(random_orders(2, 25, image_ids=[2999, 5]), orders[[2999, 5]])
    assert not (random_orders(3000, 25, seed=1) == orders).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 0}, "found 0 orders"),
        ({"proximity_threshold": -1.0}, "proximity threshold -1.0"),
        ({"repulsion_threshold": math.nan}, "repulsion threshold nan"),
        ({"image_ids": [1]}, r"shape \(1,\), expected \(2,\)"),
        ({"grid_size": 2049}, "found 2049 tokens a side, expected at most 2048"),
        ({"known": [[0, 1]]}, r"known positions of shape \(1, 2\) and type int64, expected rows"),
        ({"known": [[0], [16]]}, r"known positions 0\.\.16, expected 0\.\.15"),
        ({"known": [[0], [-1]]}, r"known positions -1\.\.0, expected 0\.\.15"),
        ({"known": [[3, 3], [0, 1]]}, "known position repeated"),
        ({"known": [[3, 1], [0, 1]]}, "sum to 16, expected a sum of 14"),
    ],
)
def test_bad_settings(options: dict, message: str) -> None:
    good = {"num": 2, "group_sizes": [1, 15], "grid_size": 4}
    with pytest.raises(ValueError, match=message):
        locality_aware_orders(**(good | options))


def test_a_row_depends_on_seed_image_and_what_is_known_of_it_only() -> None:
    setting = SETTINGS["8x8 in 12"]
    orders = make(setting, 300)
    np.testing.assert_array_equal(make(setting, 100), orders[:100])
    picked = make(setting, 3, image_ids=[250, 7, 7])
    np.testing.assert_array_equal(picked, orders[[250, 7, 7]])
    assert len(np.unique(orders, axis=0)) == 300
    assert not (make(setting, 300, seed=1) == orders).all(axis=1).any()
    nothing = np.empty((5, 0), dtype=np.int64)
    np.testing.assert_array_equal(make(setting, 5, known=nothing), orders[:5])
    assert locality_aware_orders(1, [], 2, known=[[3, 1, 0, 2]]).tolist() == [[3, 1, 0, 2]]
    assert locality_aware_orders(4, [1], 1).tolist() == [[0]] * 4

    known = np.stack([scattered(8, 30), np.arange(30), scattered(8, 30)[::-1]])
    setting, ids = (8, remaining_group_sizes(64, 30)), np.array([5, 6, 5])
    orders, *alone = (
        make(setting, len(rows), seed=3, image_ids=ids[rows], known=known[rows])
        for rows in ([0, 1, 2], [0], [1], [2])
    )
    np.testing.assert_array_equal(np.concatenate(alone), orders)
    # The same positions in another order are the same knowledge.
    np.testing.assert_array_equal(orders[0, 30:], orders[2, 30:])
