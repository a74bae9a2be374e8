import math
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from orders import statistics as distances
from orders.locality import random_orders
from orders.statistics import group_distances


def literally(order: np.ndarray, sizes: list[int], side: int) -> tuple[list[float], list[float]]:
    """The definition, group by group."""
    to_context, within = [], []
    places = np.stack(np.divmod(order, side), axis=1)
    for start, stop in pairwise(accumulate(sizes, initial=0)):
        group = places[start:stop]
        to_context.append(cdist(group, places[:start]).min(axis=1).mean() if start else math.nan)
        apart = cdist(group, group)
        np.fill_diagonal(apart, math.inf)
        within.append(apart.min(axis=1).mean() if len(group) > 1 else math.nan)
    return to_context, within


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_distances_are_the_definition(data: st.DataObject) -> None:
    side = data.draw(st.integers(1, 6))
    cuts = data.draw(st.sets(st.integers(1, side**2 - 1))) if side > 1 else set()
    sizes = np.diff([0, *sorted(cuts), side**2]).tolist()
    orders = random_orders(3, side**2, seed=data.draw(st.integers(0, 1000)))
    found = group_distances(orders, sizes)
    for row, order in enumerate(orders):
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
