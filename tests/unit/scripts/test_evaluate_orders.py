"""Which defaults a study of orders has."""

from scripts.evaluate_orders import build_parser, settle_flags


def test_a_comparison_and_a_search_have_defaults_of_their_own() -> None:
    def settled(*given: str) -> dict[str, object]:
        args = build_parser().parse_args(["--pretrained_ckpt", "a", "--cached_path", "b", *given])
        settle_flags(args)
        return vars(args)

    comparison = settled()
    assert comparison["orders"] == ["lpd", "random", "raster"] and comparison["repulsions"] is None
    assert settled("--orders", "lpd:2")["orders"] == ["lpd:2"]
    search = settled("--search", "--steps", "8", "--repulsions", "1", "2")
    assert search["orders"] is None and search["repulsions"] == [1, 2]
    assert search["proximities"] == [0, 1, 2, 3, 7]  # and so repulsion alone
    assert search["shapes"] == ["rule", "1", "1.5", "2", "3"]
