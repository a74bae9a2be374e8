"""Generation plans: checked when built, values afterwards."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from orders.plan import GenerationPlan

ORDERS = [[3, 1, 2, 0], [0, 1, 2, 3]]


def test_build() -> None:
    arrays = [np.array(ORDERS, dtype=dtype) for dtype in (np.uint8, np.int32)]
    tensors = [torch.tensor(ORDERS, dtype=dtype) for dtype in (torch.int64, torch.int32)]
    for orders in (ORDERS, *arrays, *tensors):
        plan = GenerationPlan.build(orders, [1, 3], 4)
        if orders is not ORDERS:  # the plan is a copy
            orders[:] = 0
        assert plan.orders.dtype == torch.int64 and plan.orders.tolist() == ORDERS
        assert plan.group_sizes == (1, 3)
        assert (plan.batch_size, plan.num_tokens, plan.num_steps) == (2, 4, 2)
        with pytest.raises(dataclasses.FrozenInstanceError):
            plan.group_sizes = (4,)


def test_steps_cover_the_order_after_what_is_known() -> None:
    assert list(GenerationPlan.build(ORDERS, [1, 1, 2], 4).steps()) == [(0, 1), (1, 2), (2, 4)]
    plan = GenerationPlan.build(ORDERS, [1, 2], 4, num_known=1)
    assert list(plan.steps()) == [(1, 2), (2, 4)]
    assert (plan.num_known, plan.num_tokens, plan.num_steps) == (1, 4, 2)
    assert list(GenerationPlan.build(ORDERS, [], 4, num_known=4).steps()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ORDERS, [1, 2], 4, 2), "sum to 3, expected a sum of 2"),
        ((ORDERS, [1, 2], 4, 4), "sum to 3, expected a sum of 0"),
        ((ORDERS, [1, 2], 4, -1), "found -1 known tokens, expected 0 to 4"),
        ((ORDERS, [1, 2], 4, 5), "found 5 known tokens, expected 0 to 4"),
        ((ORDERS, [1, 2], 4), "sum to 3, expected a sum of 4"),
        ((ORDERS, [1.0, 3.0], 4), "group 0: found 1.0, expected a whole number"),
        (([[0, 1, 2, 3], [0, 1, 1, 3]], [4], 4), "row 1: found position 1 repeated"),
        ((np.zeros((2, 9), dtype=np.int64), [4], 4), "length 9, expected 4"),
        (([], [4], 4), "found no orders"),
        (([0, 1, 2, 3], [4], 4), "row 0: expected a list"),
        ((torch.tensor([[0.0, 1.0, 2.0, 3.0]]), [4], 4), "expected rows of whole numbers"),
        ((np.array([[False, True]]), [4], 4), "expected rows of whole numbers"),
    ],
)
def test_what_is_no_plan(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationPlan.build(*arguments)
