"""Orders and group sizes that start from known positions (method section 10)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orders.group_sizes import (
    cosine_group_sizes,
    default_steps,
    group_sizes,
    remaining_group_sizes,
)
from orders.locality import locality_aware_orders
from orders.order_file import validate_orders
from tests.unit.orders import literal_reference


def block(side: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """Raster positions outside a rectangle."""
    masked = np.zeros((side, side), dtype=bool)
    masked[top:bottom, left:right] = True
    return np.flatnonzero(~masked)


def scattered(side: int, count: int) -> np.ndarray:
    return np.random.default_rng(count).permutation(side * side)[:count]


# (grid side, known positions, steps, proximity threshold, repulsion threshold)
SETTINGS = {
    "lower half": (8, block(8, 4, 0, 8, 8), None, 1.0, 1.0),
    "hole": (8, block(8, 2, 2, 6, 7), None, 1.0, 2.0),
    "hole at once": (8, block(8, 2, 2, 6, 7), 1, 1.0, 1.0),
    "all but a corner": (8, block(8, 0, 0, 7, 8), 6, 1.5, 1.0),
    "scattered": (8, scattered(8, 30), 5, 1.0, 1.0),
    "nearly nothing known": (8, np.array([63]), None, 1.0, 1.0),
    "nearly all known": (8, scattered(8, 62), None, 1.0, 1.0),
    "none near": (8, block(8, 4, 0, 8, 8), None, 50.0, 1.0),
    "all near": (8, block(8, 4, 0, 8, 8), None, 0.0, 0.0),
    "one by one": (5, block(5, 1, 1, 4, 4), 9, 1.0, 1.0),
    "16 x 16": (16, block(16, 5, 5, 16, 16), None, 1.0, 2.0),
}
settings = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())


@settings
def test_every_choice_is_legal_and_ties_are_random(setting: tuple) -> None:
    side, known, steps, proximity, repulsion = setting
    sizes = remaining_group_sizes(side * side, len(known), steps)
    num = 4 if side == 16 else 20
    orders = locality_aware_orders(
        num, sizes, side, proximity, repulsion, known=np.tile(known, (num, 1))
    )
    validate_orders(orders, side * side)
    quantiles = []
    for order in orders:
        assert order[: len(known)].tolist() == known.tolist()
        cells = [divmod(int(position), side) for position in order]
        start = len(known)
        for size in sizes:
            decoded = set(cells[:start])
            for at in range(start, start + size):
                group = cells[start:at]
                legal = literal_reference.legal_choices(decoded, group, side, proximity, repulsion)
                assert cells[at] in legal
                if len(legal) > 1:
                    centred = legal.index(cells[at]) - (len(legal) - 1) / 2
                    quantiles.append(centred / math.sqrt((len(legal) ** 2 - 1) / 12))
            start += size
    if len(quantiles) > 100:
        assert abs(np.mean(quantiles)) * math.sqrt(len(quantiles)) < 4.5
        assert np.var(quantiles) == pytest.approx(1, abs=5 / math.sqrt(len(quantiles)))


def test_the_first_group_lies_next_to_what_is_known() -> None:
    known = np.tile(block(8, 4, 0, 8, 8), (50, 1))
    orders = locality_aware_orders(50, [2, 30], 8, known=known)
    assert set(orders[:, 32:34].ravel() // 8) == {4}


def test_a_row_depends_on_what_is_known_of_it_only() -> None:
    known = np.stack([scattered(8, 30), block(8, 0, 0, 2, 17)[:30], scattered(8, 30)[::-1]])
    sizes = remaining_group_sizes(64, 30)
    options = {"grid_size": 8, "seed": 3}
    orders = locality_aware_orders(3, sizes, image_ids=[5, 6, 5], known=known, **options)
    for row in range(3):
        ids = [[5, 6, 5][row]]
        alone = locality_aware_orders(1, sizes, image_ids=ids, known=known[[row]], **options)
        np.testing.assert_array_equal(alone[0], orders[row])
    # The same positions in another order are the same knowledge.
    np.testing.assert_array_equal(orders[0, 30:], orders[2, 30:])


def test_nothing_known_is_as_without() -> None:
    sizes = group_sizes(64, 12)
    nothing = np.empty((5, 0), dtype=np.int64)
    np.testing.assert_array_equal(
        locality_aware_orders(5, sizes, 8, known=nothing), locality_aware_orders(5, sizes, 8)
    )
    assert locality_aware_orders(1, [], 2, known=[[3, 1, 0, 2]]).tolist() == [[3, 1, 0, 2]]


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ([[0, 1]], r"known positions of shape \(1, 2\) and type int64, expected rows .* 2 orders"),
        ([[0.5], [1.0]], "type float64"),
        ([[0], [16]], r"known positions 0\.\.16, expected 0\.\.15"),
        ([[0], [-1]], r"known positions -1\.\.0, expected 0\.\.15"),
        ([[3, 3], [0, 1]], "known position repeated"),
        ([[3, 1], [0, 1]], "sum to 15, expected a sum of 14"),
    ],
)
def test_bad_known_positions(known: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        locality_aware_orders(2, [15], 4, known=known)


@pytest.mark.parametrize("num_tokens", [1, 4, 16, 25, 64, 256, 1024])
def test_group_sizes_of_the_rest(num_tokens: int) -> None:
    for num_known in {0, 1, num_tokens // 3, num_tokens // 2, num_tokens - 1, num_tokens}:
        left = num_tokens - num_known
        default = remaining_group_sizes(num_tokens, num_known)
        full = min(default_steps(num_tokens), num_tokens)
        assert len(default) == math.ceil(full * left / num_tokens)
        least = 2 if not num_known else 1
        for steps in {least, len(default), left // 2, left} & set(range(least, left + 1)):
            sizes = remaining_group_sizes(num_tokens, num_known, steps)
            assert len(sizes) == steps and sum(sizes) == left and min(sizes) >= 1
            assert sizes == sorted(sizes)


def test_group_sizes_follow_the_curve() -> None:
    # Half of 256 known: 60 degrees on the curve; ten equal steps to 90.
    angles = np.radians(np.linspace(60, 90, 11))
    np.testing.assert_allclose(
        remaining_group_sizes(256, 128, 10), -256 * np.diff(np.cos(angles)), atol=1
    )
    assert remaining_group_sizes(256, 0, 20) == group_sizes(256, 20)
    assert remaining_group_sizes(64, 0, 7) == cosine_group_sizes(64, 7)
    assert remaining_group_sizes(64, 32) == [5, 5, 5, 5, 6, 6]
    assert default_steps(256) == 20 and default_steps(1024) == 48 and default_steps(64) == 12


@pytest.mark.parametrize(("known", "steps"), [(32, 33), (32, 0), (0, 1), (0, 65)])
def test_impossible_numbers_of_steps(known: int, steps: int) -> None:
    with pytest.raises(ValueError, match=f"found {steps} steps"):
        remaining_group_sizes(64, known, steps)
