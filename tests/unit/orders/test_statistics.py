import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orders import statistics as distances
from orders.locality import random_orders
from orders.statistics import group_distances


def literally(order: list[int], sizes: list[int], side: int) -> tuple[list[float], list[float]]:
    """The definition, position by position."""
    to_context, within, before = [], [], []

    def nearest(position: int, others: list[int]) -> float:
        y, x = divmod(position, side)
        return min(math.dist((y, x), divmod(other, side)) for other in others)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    for size in sizes:
        group = order[len(before) : len(before) + size]
        to_context.append(mean([nearest(p, before) for p in group]) if before else math.nan)
        others = [[other for other in group if other != p] for p in group]
        alone = size == 1
        within.append(math.nan if alone else mean(list(map(nearest, group, others))))
        before += group
    return to_context, within


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_distances_are_the_definition(data: st.DataObject) -> None:
    side = data.draw(st.integers(1, 6))
    cuts = data.draw(st.sets(st.integers(1, side**2 - 1))) if side > 1 else set()
    sizes = np.diff([0, *sorted(cuts), side**2]).tolist()
    orders = random_orders(3, side**2, seed=data.draw(st.integers(0, 1000)))
    found = group_distances(orders, sizes)
    for row, order in enumerate(orders.tolist()):
        for values, expected in zip(found, literally(order, sizes, side), strict=True):
            np.testing.assert_allclose(values[row], expected, rtol=1e-6)


def test_an_order_by_hand() -> None:
    # Step of each position:  1 3 2
    #                         3 3 3
    #                         2 3 2
    order = np.array([[0, 2, 6, 8, 1, 3, 4, 5, 7]])
    to_context, within = group_distances(order, [1, 3, 5])
    assert to_context[0] == pytest.approx(
        [math.nan, (2 + 2 + math.sqrt(8)) / 3, (4 + math.sqrt(2)) / 5], nan_ok=True
    )
    assert within[0] == pytest.approx([math.nan, 2, 1], nan_ok=True)


def test_the_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    orders, sizes = random_orders(7, 16, seed=3), [1, 3, 12]
    at_once = group_distances(orders.astype(np.uint8), sizes)
    monkeypatch.setattr(distances, "_BATCH_PAIRS", 2 * 256)
    np.testing.assert_array_equal(at_once, group_distances(orders, sizes))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="found 5 positions, expected a square number"):
        group_distances(np.arange(5)[None], [5])
    with pytest.raises(ValueError, match="sum to 3, expected a sum of 4"):
        group_distances(np.arange(4)[None], [1, 2])
