"""The published group-size tables, verbatim."""

import json
from pathlib import Path

import pytest

from orders.group_sizes import cosine_group_sizes, group_sizes, training_group_sizes

TABLES = json.loads((Path(__file__).parent / "data" / "group_sizes.json").read_text())
LISTS = [
    (num_tokens, int(steps), sizes)
    for num_tokens, size in ((256, "256"), (1024, "512"))
    for steps, sizes in TABLES[size].items()
]


@pytest.mark.parametrize(("num_tokens", "steps", "sizes"), LISTS)
def test_published_lists(num_tokens: int, steps: int, sizes: list[int]) -> None:
    assert group_sizes(num_tokens, steps) == sizes


@pytest.mark.parametrize(("num_tokens", "size", "steps"), [(256, "256", 20), (1024, "512", 48)])
def test_training_uses_the_whole_table_and_the_rule_gives_headline_lists(
    num_tokens: int, size: str, steps: int
) -> None:
    assert sorted(training_group_sizes(num_tokens)) == sorted(TABLES[size].values())
    assert cosine_group_sizes(num_tokens, steps) == TABLES[size][str(steps)]
