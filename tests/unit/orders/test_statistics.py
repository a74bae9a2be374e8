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

    def mean_to_nearest(positions: list[int], others: list[int]) -> float:
        nearest = [
            min((math.dist(divmod(p, side), divmod(q, side)) for q in others if q != p), default=0)
            for p in positions
        ]
        return sum(nearest) / len(nearest)

    for size in sizes:
        group = order[len(before) : len(before) + size]
        to_context.append(mean_to_nearest(group, before) if before else math.nan)
        within.append(mean_to_nearest(group, group) if size > 1 else math.nan)
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


def test_the_batches_change_nothing_and_what_does_not_fit_is_refused(monkeypatch) -> None:
    orders, sizes = random_orders(7, 16, seed=3), [1, 3, 12]
    at_once = group_distances(orders.astype(np.uint8), sizes)
    monkeypatch.setattr(distances, "_BATCH_PAIRS", 2 * 256)
    np.testing.assert_array_equal(at_once, group_distances(orders, sizes))
    with pytest.raises(ValueError, match="found 5 positions, expected a square number"):
        group_distances(np.arange(5)[None], [5])
    with pytest.raises(ValueError, match="sum to 3, expected a sum of 4"):
        group_distances(np.arange(4)[None], [1, 2])
