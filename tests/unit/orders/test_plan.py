"""Generation plans: checked when built, values afterwards."""

import dataclasses

import numpy as np
import pytest
import torch

from orders.plan import GenerationPlan

ORDERS = [[3, 1, 2, 0], [0, 1, 2, 3]]


def test_build() -> None:
    arrays = [np.array(ORDERS, dtype=dtype) for dtype in (np.uint8, np.int32)]
    for orders in (ORDERS, *arrays, torch.tensor(ORDERS), torch.tensor(ORDERS, dtype=torch.int32)):
        plan = GenerationPlan.build(orders, [1, 3], 4)
        if orders is not ORDERS:  # the plan is a copy
            orders[:] = 0
        assert plan.orders.dtype == torch.int64 and plan.orders.tolist() == ORDERS
        assert (plan.group_sizes, plan.num_tokens) == ((1, 3), 4)
        with pytest.raises(dataclasses.FrozenInstanceError):
            plan.group_sizes = (4,)


@pytest.mark.parametrize(
    ("sizes", "num_known", "steps"),
    [([1, 1, 2], 0, [(0, 1), (1, 2), (2, 4)]), ([1, 2], 1, [(1, 2), (2, 4)]), ([], 4, [])],
)
def test_steps_cover_the_order_after_what_is_known(sizes, num_known, steps) -> None:
    plan = GenerationPlan.build(ORDERS, sizes, 4, num_known)
    assert (list(plan.steps()), plan.num_known) == (steps, num_known)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ORDERS, [1, 2], 4, 2), "sum to 3, expected a sum of 2"),
        ((ORDERS, [1, 2], 4, -1), "found -1 known tokens, expected 0 to 4"),
        ((ORDERS, [1, 2], 4, 5), "found 5 known tokens, expected 0 to 4"),
        (([[0, 1, 2, 3], [0, 1, 1, 3]], [4], 4), "row 1: found position 1 repeated"),
        ((np.zeros((2, 9), dtype=np.int64), [4], 4), "length 9, expected 4"),
        ((torch.tensor([[0.0, 1.0]]), [2], 2), "expected rows of whole numbers"),
    ],
)
def test_what_is_no_plan(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationPlan.build(*arguments)
