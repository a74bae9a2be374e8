"""Which images and orders a study takes."""

from argparse import Namespace
from types import SimpleNamespace

import pytest

from scripts.evaluate_orders import build_parser, choose_images, settle_flags
from util.errors import UserError

CACHE = SimpleNamespace(num_images=48, path="held_out")


def test_images_are_spread_over_a_cache_that_is_sorted_by_class() -> None:
    assert choose_images(Namespace(num_images=4), CACHE).tolist() == [0, 12, 24, 36]
    assert choose_images(Namespace(num_images=None), CACHE).tolist() == list(range(48))


@pytest.mark.parametrize("number", [1, 49])
def test_more_than_there_are_is_refused(number: int) -> None:
    with pytest.raises(UserError, match=f"found {number}, expected 2 to the 48 of held_out"):
        choose_images(Namespace(num_images=number), CACHE)


def flags(*given: str) -> Namespace:
    args = build_parser().parse_args(["--pretrained_ckpt", "a.pth", "--cached_path", "b", *given])
    settle_flags(args)
    return args


def test_a_comparison_and_a_search_have_defaults_of_their_own() -> None:
    found = flags()
    assert found.orders == ["lpd", "random", "raster"] and found.repulsions is None
    assert flags("--orders", "lpd:2").orders == ["lpd:2"]
    found = flags("--search", "--steps", "8", "--repulsions", "1", "2")
    assert found.orders is None and found.repulsions == [1, 2]
    assert found.proximities == [0, 1, 2, 3, 7]  # and so repulsion alone
    assert found.shapes == ["rule", "1", "1.5", "2", "3"]


@pytest.mark.parametrize("name", ["repulsions", "proximities", "shapes"])
def test_flags_of_a_search_need_one(name: str) -> None:
    with pytest.raises(UserError, match=f"^--{name}: found without --search, expected both or"):
        flags(f"--{name}", "1")


@pytest.mark.parametrize(
    "given", [["--orders", "lpd"], ["--group_sizes", "[16]"], ["--plot", "a.png"]]
)
def test_a_search_takes_no_flags_of_a_comparison(given: list[str]) -> None:
    with pytest.raises(UserError, match=f"^--search: found {given[0]}, expected "):
        flags("--search", "--steps", "8", *given)
