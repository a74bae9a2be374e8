"""The cosine rule, the training set, and group sizes written by users."""

import json
import math
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

from orders import group_sizes as rules


def literal_rule(num_tokens: int, steps: int) -> list[int]:
    """The rule of method section 5, word by word."""
    angles = [math.pi * i / (2 * steps) for i in range(steps + 1)]
    unrounded = [num_tokens * (math.cos(a) - math.cos(b)) for a, b in pairwise(angles)]
    sizes = [1] + [max(1, round(value)) for value in unrounded[1:]]
    while sum(sizes) != num_tokens:
        change = 1 if sum(sizes) < num_tokens else -1
        options = []
        for entry in range(1, steps):
            changed = list(sizes)
            changed[entry] += change
            if changed == sorted(changed):
                distance = round(abs(changed[entry] - unrounded[entry]), 9)
                options.append((distance, -entry, changed))
        sizes = min(options)[2]
    return sizes


@pytest.mark.parametrize("num_tokens", [4, 5, 9, 25, 36, 64])
def test_rule_word_by_word(num_tokens: int) -> None:
    for steps in range(2, num_tokens + 1):
        assert rules.cosine_group_sizes(num_tokens, steps) == literal_rule(num_tokens, steps)


def test_extremes_and_impossible_splits() -> None:
    assert rules.group_sizes(1, 1) == [1]
    assert rules.group_sizes(9, 2) == [1, 8]
    assert rules.group_sizes(9, 9) == [1] * 9
    for num_tokens, steps in ((9, 1), (9, 10), (9, 0), (9, -3), (1, 2)):
        with pytest.raises(ValueError, match=f"found {steps} steps, expected"):
            rules.group_sizes(num_tokens, steps)
    for num_known, steps in ((32, 33), (32, 0), (0, 1), (0, 65)):
        with pytest.raises(ValueError, match=f"found {steps} steps"):
            rules.remaining_group_sizes(64, num_known, steps)


def test_a_list_is_the_callers_own() -> None:
    rules.group_sizes(256, 20).append(7)
    rules.training_group_sizes(256)[0].append(7)
    assert len(rules.group_sizes(256, 20)) == 20
    assert sum(rules.training_group_sizes(256)[0]) == 256


def test_training_set_of_other_grids() -> None:
    for num_tokens, steps in (
        (64, [64, 32, 16, 8, 12, 6]),
        (25, [25, 12, 6, 3]),
        (16, [16, 8, 4, 2, 12, 6]),
        (4, [4, 2]),
        (1, [1]),
    ):
        lists = rules.training_group_sizes(num_tokens)
        assert lists == [rules.group_sizes(num_tokens, count) for count in steps]


def test_texts_that_are_understood() -> None:
    for text in ("[1] * 9", " [1]*9 ", "9*[1]"):
        assert rules.parse_group_sizes(text, 9) == [1] * 9
    for text in ("[1,\n 2,\n 6,]", "(1, 2, 6)", "1, 2, 6"):
        assert rules.parse_group_sizes(text, 9) == [1, 2, 6]
    assert rules.parse_group_sizes("([1] + [2]) * 3", 9) == [1, 2, 1, 2, 1, 2]
    assert rules.parse_group_sizes("2 * ([1]*3 + (2,) + []) + [3]", 13) == [1, 1, 1, 2] * 2 + [3]


LONG_TEXTS = [
    *("[1] * 10**9", "[1] * 10000000000", "[1] * 999999999", "[[1] * 60000] * 60000"),
    *("([1] * 60000) * 60000", "+".join(["[1] * 60000"] * 150), "[" * 5000 + "1" + "]" * 5000),
    *("(" * 51 + "[9]" + ")" * 51, "-" * 5000 + "1", "[1]" + "+[1]" * 3000),
    *("[" + "1," * 500_000 + "]", "[" + "9" * 10_000 + "]"),
]
OTHER_TEXTS = [
    *("", "9", "[9", "[1] [8]", "[1] - [8]", "[1] * [9]", "[9] + 1", "[[1], [8]]", "[*[9]]"),
    *("[(9)] * (1 + 0)", "[1.5] * 6", "[True] * 9", "['1'] * 9", "[1] * -1", "[-1, 10]", "[0, 9]"),
    *("[1] * 8", "list(range(9))", "[9] if 1 else 2", "[٩]", "[9]\0"),
]


@pytest.mark.parametrize("text", [*LONG_TEXTS, *OTHER_TEXTS])
def test_texts_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="found .*") as caught:
        rules.parse_group_sizes(text, 9)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_invalid_sizes_and_lists(tmp_path: Path) -> None:
    """The page of bad input has more of them."""
    path = tmp_path / "lists.json"
    path.write_text(json.dumps([[1, 8], [1] * 9]))
    assert rules.read_group_sizes_list(path, 9) == [[1, 8], [1] * 9]
    bad = ([], "found an empty list"), ([[9], [True, 8]], "list 1: group 0: found T")
    for lists, message in bad:
        path.write_text(json.dumps(lists))
        with pytest.raises(ValueError, match=rf"lists\.json: {message}"):
            rules.read_group_sizes_list(path, 9)


def check_split(sizes: list[int], steps: int, total: int) -> None:
    assert len(sizes) == steps and sum(sizes) == total and min(sizes, default=1) >= 1


@pytest.mark.parametrize("num_tokens", [1, 4, 25, 64, 256, 1024])
def test_group_sizes_of_the_rest(num_tokens: int) -> None:
    full = min(rules.default_steps(num_tokens), num_tokens)
    for num_known in {0, 1, num_tokens // 3, num_tokens - 1, num_tokens}:
        left, least = num_tokens - num_known, 1 if num_known else 2
        default = rules.remaining_group_sizes(num_tokens, num_known)
        check_split(default, math.ceil(full * left / num_tokens), left)
        for steps in {least, len(default), left // 2, left} & set(range(least, left + 1)):
            sizes = rules.remaining_group_sizes(num_tokens, num_known, steps)
            check_split(sizes, steps, left)
            assert sizes == sorted(sizes)


def test_group_sizes_follow_the_curve() -> None:
    # Half of 256 known: 60 degrees on the curve; ten equal steps to 90.
    expected = -256 * np.diff(np.cos(np.radians(np.linspace(60, 90, 11))))
    np.testing.assert_allclose(rules.remaining_group_sizes(256, 128, 10), expected, atol=1)
    assert rules.remaining_group_sizes(256, 0, 20) == rules.group_sizes(256, 20)
    assert rules.remaining_group_sizes(64, 32) == [5, 5, 5, 5, 6, 6]
    assert [rules.default_steps(num_tokens) for num_tokens in (256, 1024, 64)] == [20, 48, 12]


def test_shapes() -> None:
    assert rules.shaped_group_sizes(256, 20, "rule") == rules.group_sizes(256, 20)
    assert rules.shaped_group_sizes(13, 5, "1") == [1, 3, 3, 3, 3]
    assert rules.shaped_group_sizes(17, 5, "2") == [1, 1, 3, 5, 7]
    for shape, num_tokens in product(("0.2", "1", "1.5", "3", "40"), (4, 16, 64, 256)):
        for steps in {2, 3, num_tokens // 2, num_tokens - 1, num_tokens}:
            sizes = rules.shaped_group_sizes(num_tokens, steps, shape)
            check_split(sizes, steps, num_tokens)
            assert sizes[0] == 1
    for shape in ("cosine", "0", "-1", "nan", "inf"):
        with pytest.raises(ValueError, match=f"found shape '{shape}', expected rule or a positive"):
            rules.shaped_group_sizes(256, 20, shape)
    for steps in (0, 1, 257):
        with pytest.raises(ValueError, match=f"found {steps} steps, expected 2 to 256"):
            rules.shaped_group_sizes(256, steps, "2")
