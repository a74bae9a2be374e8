"""Finding what fits."""

import pytest
import torch

from models.cuda_graphs import largest_that_fits


@pytest.mark.parametrize("limit", [0, 1, 2, 5, 62, 63])
def test_the_largest_size_that_fits_is_found(limit: int) -> None:
    tried = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("too much")

    assert largest_that_fits(attempt, 64) == limit
    assert len(tried) <= 6  # bisection
    assert 0 not in tried and 64 not in tried


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="something else"):
        largest_that_fits(lambda size: (_ for _ in ()).throw(RuntimeError("something else")), 8)
