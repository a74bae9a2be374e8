"""Whatever it is given, a parser returns what is valid or says in one line what is not."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orders.group_sizes import parse_group_sizes, read_group_sizes_list, validate_group_sizes
from orders.order_file import read_orders, validate_orders
from tests import fuzzing

NUM_TOKENS = 9
anything = settings(
    deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def check(read: Callable, validate: Callable, given: str | Path) -> None:
    """It returns what is valid, or refuses in one line."""
    try:
        found = read(given, NUM_TOKENS)
    except ValueError as error:
        assert fuzzing.one_line(error)
        assert isinstance(given, str) or str(error).startswith(str(given))
    else:
        validate(found, NUM_TOKENS)


PIECES = [*"[]()1*+-, \n", "9" * 9, "**", "[1]", "__import__"]


@anything
@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from(PIECES), max_size=400).map("".join),
        fuzzing.damaged(b"[1]*3 + (2, 4) * 1").map(lambda text: text.decode("latin-1")),
    )
)
@example("[1] * 99999 * 99999 * 99999")
@example("[" * 10**6)
def test_any_text_of_group_sizes(text: str) -> None:
    check(parse_group_sizes, validate_group_sizes, text)


def validate_lists(lists: list[list[int]], num_tokens: int) -> None:
    assert lists
    for sizes in lists:
        validate_group_sizes(sizes, num_tokens)


ANY_JSON = st.one_of(fuzzing.JSON.map(lambda value: json.dumps(value).encode()), st.binary())
ORDERS = json.dumps([np.roll(np.arange(NUM_TOKENS), shift).tolist() for shift in range(3)]).encode()
LISTS = b"[[1, 8], [1, 1, 1, 6], [1, 2, 2, 4]]"


@pytest.mark.parametrize(
    ("read", "validate", "name", "contents"),
    [
        (read_orders, validate_orders, "orders.json", fuzzing.damaged(ORDERS) | ANY_JSON),
        (read_orders, validate_orders, "orders.npy", fuzzing.HEADERS),
        (read_group_sizes_list, validate_lists, "lists.json", fuzzing.damaged(LISTS) | ANY_JSON),
    ],
)
@anything
@given(data=st.data())
def test_any_file(tmp_path: Path, read, validate, name, contents, data: st.DataObject) -> None:
    (tmp_path / name).write_bytes(data.draw(contents))
    check(read, validate, tmp_path / name)


MEGABYTE = 10**6
HOSTILE = {
    "brackets.npy": fuzzing.npy("(" * 9000),
    "long.npy": b"\x93NUMPY\2\0" + b"\xff" * MEGABYTE,
    "brackets.json": b"[" * MEGABYTE,
    "braces.json": b'[{"a":' * 10**5,
    "exponent.json": b"[[1e999, -1E999, NaN]]",
    "large.json": b"[[" + b"9" * 4000 + (b"," + b"9" * 4000) * 200 + b"]]",
    "least.json": b"[[-" + b"9" * 4000 + b"]]",
    "number.json": b"[[" + b"9" * MEGABYTE + b"]]",
    "numbers.json": b"[[" + b"0," * (MEGABYTE // 2) + b"0]]",
    "short.json": b"[" + b"[0]," * (MEGABYTE // 5) + b"[1]]",
    "void.json": b"[" + b"[]," * (MEGABYTE // 3) + b"[]]",
    "space.json": b"[[0" + b" " * MEGABYTE,
    "text.json": b'["' + b"a" * MEGABYTE + b'"]',
}


@pytest.mark.parametrize(
    ("read", "names"),
    [("order_file.read_orders", "*"), ("group_sizes.read_group_sizes_list", "*.json")],
)
def test_small_files_take_little_memory_and_time(tmp_path: Path, read: str, names: str) -> None:
    for name, content in HOSTILE.items():
        (tmp_path / name).write_bytes(content)
    imports, files = "from orders import group_sizes, order_file", sorted(tmp_path.glob(names))
    lines = fuzzing.read_confined(imports, f"{read}(path, 256)", *files)
    assert len(lines) == len(files)
    assert max(map(len, lines)) < 1000
