import pytest
import torch

from models.masks import group_causal_mask
from tests.unit.models.small import random_split


def literal_mask(sizes: list[int]) -> torch.Tensor:
    """Method section 3, sentence by sentence."""
    kinds = [("class", 0)]
    for group, size in enumerate(sizes[:-1], start=1):
        kinds += [("context", group)] * size
    for group, size in enumerate(sizes, start=1):
        kinds += [("query", group)] * size

    def may(looker: tuple[str, int], seen: tuple[str, int]) -> bool:
        (kind, group), (seen_kind, seen_group) = looker, seen
        if kind == "class":
            return seen_kind == "class"
        if kind == "context":
            return seen_kind != "query" and seen_group <= group
        if seen_kind == "query":
            return seen_group == group
        return seen_kind == "class" or seen_group < group

    return torch.tensor([[may(row, column) for column in kinds] for row in kinds])


@pytest.mark.parametrize("seed", range(12))
def test_mask_says_what_the_method_says(seed: int) -> None:
    sizes = random_split(torch.Generator().manual_seed(seed))
    assert torch.equal(group_causal_mask(sizes), literal_mask(sizes))


def test_one_group_and_single_tokens() -> None:
    assert torch.equal(group_causal_mask([4]), literal_mask([4]))
    assert torch.equal(group_causal_mask([1] * 5), literal_mask([1] * 5))
