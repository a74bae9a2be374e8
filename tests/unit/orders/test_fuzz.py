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
from tests.fuzzing import HEADERS, JSON, damaged, npy, one_line, read_confined

NUM_TOKENS = 9
PIECES = [*"[]()1*+-, \n", "9" * 9, "**", "[1]", "__import__"]
ANY_JSON = st.one_of(JSON.map(lambda value: json.dumps(value).encode()), st.binary())
anything = settings(
    deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def check(read: Callable, validate: Callable, given: str | Path) -> None:
    """It returns what is valid, or refuses in one line."""
    try:
        found = read(given, NUM_TOKENS)
    except ValueError as error:
        assert one_line(error)
        assert isinstance(given, str) or str(error).startswith(str(given))
    else:
        validate(found, NUM_TOKENS)


@anything
@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from(PIECES), max_size=400).map("".join),
        damaged(b"[1]*3 + (2, 4) * 1").map(lambda text: text.decode("latin-1")),
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


@anything
@given(st.one_of(ANY_JSON, damaged(b"[[1, 8], [1, 1, 1, 6], [1, 2, 2, 4]]")))
@example(b"[[9" + b"9" * 4000 + b"], [1]]")
@example(b"[[-" + b"9" * 4000 + b"]]")
def test_any_list_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fuzz.json").write_bytes(content)
    check(read_group_sizes_list, validate_lists, tmp_path / "fuzz.json")


ORDERS = json.dumps([np.roll(np.arange(NUM_TOKENS), shift).tolist() for shift in range(3)]).encode()
FILES = {"fuzz.json": st.one_of(damaged(ORDERS), ANY_JSON), "fuzz.npy": HEADERS}


@pytest.mark.parametrize("name", FILES)
@anything
@given(st.data())
def test_any_order_file(tmp_path: Path, name: str, data: st.DataObject) -> None:
    (tmp_path / name).write_bytes(data.draw(FILES[name]))
    check(read_orders, validate_orders, tmp_path / name)


MEGABYTE = 10**6
HOSTILE_ORDERS = {
    "brackets.npy": npy("(" * 9000),
    "long.npy": b"\x93NUMPY\2\0" + b"\xff" * MEGABYTE,
    "brackets.json": b"[" * MEGABYTE,
    "braces.json": b'[{"a":' * 10**5,
    "number.json": b"[[" + b"9" * MEGABYTE + b"]]",
    "numbers.json": b"[[" + b"0," * (MEGABYTE // 2) + b"0]]",
    "short.json": b"[" + b"[0]," * (MEGABYTE // 5) + b"[1]]",
    "void.json": b"[" + b"[]," * (MEGABYTE // 3) + b"[]]",
    "space.json": b"[[0" + b" " * MEGABYTE,
    "text.json": b'["' + b"a" * MEGABYTE + b'"]',
}
HOSTILE_LISTS = {
    **{name: file for name, file in HOSTILE_ORDERS.items() if name.endswith(".json")},
    "large.json": b"[[" + b"9" * 4000 + (b"," + b"9" * 4000) * 200 + b"]]",
    "exponent.json": b"[[1e999, -1E999, NaN]]",
}


@pytest.mark.parametrize(
    ("read", "files"),
    [
        ("order_file.read_orders(path, 256)", HOSTILE_ORDERS),
        ("group_sizes.read_group_sizes_list(path, 256)", HOSTILE_LISTS),
    ],
)
def test_small_files_take_little_memory_and_time(tmp_path, read, files) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    imports = "from orders import group_sizes, order_file"
    result = read_confined(imports, read, *sorted(tmp_path.iterdir()))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == len(files)
    assert max(map(len, lines)) < 1000
