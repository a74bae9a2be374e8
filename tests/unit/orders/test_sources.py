import numpy as np
import pytest

from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders, random_orders
from orders.sources import parse_order, published_repulsion
from util.geometry import TokenGrid

GRID = TokenGrid(64, 4, 32)  # 16 x 16
IDS = np.array([3, 0, 41])


def orders(text: str, ids: np.ndarray = IDS, steps: int = 20, seed: int = 5) -> np.ndarray:
    return parse_order(text, GRID, seed, 50)(ids, group_sizes(256, steps))


def test_kinds_are_what_evaluation_uses() -> None:
    sizes = group_sizes(256, 20)
    lpd = [locality_aware_orders(3, sizes, 16, p, r, 5, IDS) for p, r in [(1, 2), (1, 3), (0, 3)]]
    for text, expected in {
        **{"lpd": lpd[0], "lpd:2": lpd[0]},  # published: repulsion 2 in 20 steps
        **{"lpd:3": lpd[1], "lpd:3:0": lpd[2], "random": random_orders(3, 256, 5, IDS)},
        "raster": np.tile(np.arange(256), (3, 1)),
    }.items():
        np.testing.assert_array_equal(orders(text), expected)
    np.testing.assert_array_equal(orders("lpd", steps=12), orders("lpd:1", steps=12))  # none
    published = {(256, 20): 2, (256, 32): 2, (1024, 48): 4, (256, 64): 1, (64, 12): 1}
    assert {pair: published_repulsion(*pair) for pair in published} == published


def test_anything_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"found 'spiral', expected random, raster, lpd"):
        parse_order("spiral", GRID, 0, 50)
    for text in ("lpd:", "lpd:x", "lpd:1:2:3", "lpd:-1", "lpd:nan", "lpd:inf"):
        with pytest.raises(ValueError, match=r"expected lpd:R or lpd:R:P with finite numbers"):
            parse_order(text, GRID, 0, 50)
