"""Which images a study takes."""

from argparse import Namespace
from types import SimpleNamespace

import pytest

from scripts.evaluate_orders import choose_images
from util.errors import UserError

CACHE = SimpleNamespace(num_images=48, path="held_out")


def test_images_are_spread_over_a_cache_that_is_sorted_by_class() -> None:
    assert choose_images(Namespace(num_images=4), CACHE).tolist() == [0, 12, 24, 36]
    assert choose_images(Namespace(num_images=None), CACHE).tolist() == list(range(48))


@pytest.mark.parametrize("number", [1, 49])
def test_more_than_there_are_is_refused(number: int) -> None:
    with pytest.raises(UserError, match=f"found {number}, expected 2 to the 48 of held_out"):
        choose_images(Namespace(num_images=number), CACHE)
