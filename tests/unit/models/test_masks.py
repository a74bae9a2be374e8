"""The group-causal mask: what the method says, dense and sparse, and for blind queries."""

import pytest
import torch

from models.masks import group_causal_mask
from orders.group_sizes import training_group_sizes
from tests.unit.models.small import random_split

SPLITS = [random_split(torch.Generator().manual_seed(seed)) for seed in range(6)]


def literal_mask(sizes: list[int], blind_queries: bool) -> torch.Tensor:
    """Method section 3, sentence by sentence."""
    kinds = [("class", 0, 0)]
    for group, size in enumerate(sizes[:-1], start=1):
        kinds += [("context", group, 0)] * size
    for group, size in enumerate(sizes, start=1):
        kinds += [("query", group, number) for number in range(size)]

    def may(looker: tuple[str, int, int], seen: tuple[str, int, int]) -> bool:
        (kind, group, number), (seen_kind, seen_group, seen_number) = looker, seen
        if kind == "class":
            return seen_kind == "class"
        if kind == "context":
            return seen_kind != "query" and seen_group <= group
        if seen_kind == "query":
            return seen_group == group and (not blind_queries or number == seen_number)
        return seen_kind == "class" or seen_group < group

    return torch.tensor([[may(row, column) for column in kinds] for row in kinds])


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("sizes", [*SPLITS, [4], [1] * 5], ids=str)
def test_mask_says_what_the_method_says(sizes: list[int], blind: bool) -> None:
    found = group_causal_mask(tuple(sizes), blind_queries=blind)
    assert torch.equal(found, literal_mask(sizes, blind))


LISTS = [*training_group_sizes(256), *training_group_sizes(1024), [16], [1] * 16, [1, 3, 5, 7]]


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("sizes", LISTS, ids=lambda sizes: f"{sum(sizes)}-{len(sizes)}")
def test_the_sparse_mask_is_the_dense_one(sizes: list[int], blind: bool) -> None:
    num_tokens, sparse = sum(sizes), group_causal_mask(tuple(sizes), None, blind, True)
    index = torch.arange(2 * num_tokens)
    unseen = num_tokens - sizes[-1] + 1  # context rows of the last group: nobody looks at them
    kept = torch.cat([index[:unseen], index[num_tokens:]])
    whole = sparse.mask_mod(0, 0, index[:, None], index[None, :])
    assert torch.equal(whole[kept[:, None], kept], group_causal_mask(tuple(sizes), None, blind))
    assert not whole[kept, unseen:num_tokens].any()
    assert whole.any(dim=1).all()  # a row without anything to see would be NaN
