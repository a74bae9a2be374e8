"""Which images and orders a study takes."""

from argparse import Namespace
from types import SimpleNamespace

from scripts.evaluate_orders import build_parser, choose_images, settle_flags

CACHE = SimpleNamespace(num_images=48, path="held_out")


def test_images_are_spread_over_a_cache_that_is_sorted_by_class() -> None:
    for number, places in ((4, [0, 12, 24, 36]), (None, list(range(48)))):
        args = Namespace(num_images=number, search=True)
        assert choose_images(args, CACHE).tolist() == places


def flags(*given: str) -> Namespace:
    args = build_parser().parse_args(["--pretrained_ckpt", "a.pth", "--cached_path", "b", *given])
    settle_flags(args)
    return args


def test_a_comparison_and_a_search_have_defaults_of_their_own() -> None:
    comparison = flags()
    assert comparison.orders == ["lpd", "random", "raster"] and comparison.repulsions is None
    assert flags("--orders", "lpd:2").orders == ["lpd:2"]
    search = flags("--search", "--steps", "8", "--repulsions", "1", "2")
    assert search.orders is None and search.repulsions == [1, 2]
    assert search.proximities == [0, 1, 2, 3, 7]  # and so repulsion alone
    assert search.shapes == ["rule", "1", "1.5", "2", "3"]
