"""Whatever it is given, a parser returns what is valid or says in one line what is not."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orders.group_sizes import parse_group_sizes, read_group_sizes_list, validate_group_sizes
from orders.locality import random_orders
from orders.order_file import read_orders, write_orders
from tests.fuzzing import HEADERS, JSON, claiming, damaged, npy, one_line, read_confined

NUM_TOKENS = 9

# Group sizes as text, with what it stands for.
NUMBERS = st.integers(1, 99)
PLAIN = st.lists(NUMBERS, min_size=1, max_size=5).map(lambda sizes: (str(sizes), sizes))
EXPRESSIONS = st.recursive(
    PLAIN,
    lambda parts: st.one_of(
        st.tuples(parts, NUMBERS).map(lambda p: (f"({p[0][0]}) * {p[1]}", p[0][1] * p[1])),
        st.tuples(NUMBERS, parts).map(lambda p: (f"{p[0]}*({p[1][0]})", p[0] * p[1][1])),
        st.tuples(parts, parts).map(lambda p: (f"{p[0][0]} + {p[1][0]}", p[0][1] + p[1][1])),
    ),
    max_leaves=6,
).filter(lambda expression: len(expression[1]) < 2000)
PIECES = [*"[]()1*+-, \n", "9" * 9, "**", "[1]", "__import__"]


@given(EXPRESSIONS)
def test_expressions_mean_what_python_means(expression: tuple[str, list[int]]) -> None:
    text, sizes = expression
    assert parse_group_sizes(text, sum(sizes)) == sizes


def check(read: Callable[[], object], begins: str = "") -> object:
    """What a parser returns; None where it refuses in one line."""
    try:
        return read()
    except ValueError as error:
        assert one_line(error)
        assert str(error).startswith(begins)
        return None


@contextmanager
def holding(content: bytes, suffix: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"fuzz{suffix}"
        path.write_bytes(content)
        yield path


@settings(deadline=None, max_examples=250)
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
    sizes = check(lambda: parse_group_sizes(text, NUM_TOKENS))
    if sizes is not None:
        validate_group_sizes(sizes, NUM_TOKENS)


ANY_JSON = JSON.map(lambda value: json.dumps(value).encode())


@settings(deadline=None, max_examples=250)
@given(st.one_of(st.binary(), ANY_JSON, damaged(b"[[1, 8], [1, 1, 1, 6], [1, 2, 2, 4]]")))
@example(b"[[9" + b"9" * 4000 + b"], [1]]")
@example(b"[[-" + b"9" * 4000 + b"]]")
def test_any_list_file(content: bytes) -> None:
    with holding(content, ".json") as path:
        lists = check(lambda: read_group_sizes_list(path, NUM_TOKENS), str(path))
    assert lists != []
    for sizes in lists or ():
        validate_group_sizes(sizes, NUM_TOKENS)


def good_orders(suffix: str) -> bytes:
    with holding(b"", suffix) as path:
        write_orders(path, random_orders(3, NUM_TOKENS))
        return path.read_bytes()


FILES = {
    ".json": st.one_of(damaged(good_orders(".json")), ANY_JSON, st.binary()),
    ".npy": st.one_of(
        damaged(good_orders(".npy")),
        HEADERS,
        *(st.binary().map(prefix.__add__) for prefix in (b"\x93NUMPY\1\0", b"PK\3\4", b"")),
    ),
}


@pytest.mark.parametrize("suffix", FILES)
@settings(deadline=None, max_examples=250)
@given(st.data(), st.sampled_from([None, NUM_TOKENS]))
def test_any_order_file(suffix: str, data: st.DataObject, num_tokens: int | None) -> None:
    with holding(data.draw(FILES[suffix]), suffix) as path:
        orders = check(lambda: read_orders(path, num_tokens), str(path))
        if orders is not None:
            expected = np.arange(orders.shape[1] if num_tokens is None else num_tokens)
            assert len(orders) >= 1 and (np.sort(orders, axis=1) == expected).all()


MEGABYTE = 10**6
HOSTILE_ORDERS = {
    "trillion.npy": claiming("|u1", "(1000000000000, 16)"),
    "overflow.npy": claiming("|u1", f"({2**62}, {2**62})"),
    "beyond.npy": claiming("<i8", f"({10**30}, 16)"),
    "nothing.npy": claiming("|V0", "(1000000000000, 16)"),
    "empty.npy": claiming("|u1", "(1000000000000, 0)"),
    "brackets.npy": npy("(" * 9000),
    "minus.npy": npy("-" * 9000),
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
    "numbers.json": b"[[" + b"1," * (MEGABYTE // 2) + b"1]]",
    "large.json": b"[[" + b"9" * 4000 + (b"," + b"9" * 4000) * 200 + b"]]",
    "exponent.json": b"[[1e999, -1E999, NaN]]",
    **{
        name: HOSTILE_ORDERS[name]
        for name in ("brackets.json", "braces.json", "number.json", "text.json", "void.json")
    },
}


@pytest.mark.parametrize(
    ("read", "files"),
    [
        ("order_file.read_orders(path)", HOSTILE_ORDERS),
        ("order_file.read_orders(path, 256)", HOSTILE_ORDERS),
        ("group_sizes.read_group_sizes_list(path, 256)", HOSTILE_LISTS),
    ],
)
def test_small_files_take_little_memory_and_time(tmp_path, read, files) -> None:
    for name, content in files.items():
        assert len(content) < 1.1 * MEGABYTE
        (tmp_path / name).write_bytes(content)
    imports = "from orders import group_sizes, order_file"
    result = read_confined(imports, read, *sorted(tmp_path.iterdir()))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == len(files)
    assert max(map(len, lines)) < 1000
