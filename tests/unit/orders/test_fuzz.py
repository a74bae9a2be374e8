"""Whatever it is given, a parser returns what is valid or says in one line what is not."""

from __future__ import annotations

import json
import tempfile
import time
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
NUMBERS = st.integers(0, 99)
PLAIN = st.lists(NUMBERS, max_size=5).map(lambda sizes: (str(sizes), sizes))
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
    if 0 in sizes or not sizes:
        with pytest.raises(ValueError, match="found"):
            parse_group_sizes(text, max(sum(sizes), 1))
    else:
        assert parse_group_sizes(text, sum(sizes)) == sizes


@settings(deadline=None, max_examples=250)
@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from(PIECES), max_size=400).map("".join),
        damaged(b"[1]*3 + (2, 4) * 1").map(lambda text: text.decode("latin-1")),
    )
)
@example("[1] * 10**12")
@example("[1]*1000000000000")
@example("[1] * 99999 * 99999 * 99999")
@example("[" * 10**6)
def test_any_text_of_group_sizes(text: str) -> None:
    start = time.monotonic()
    try:
        sizes = parse_group_sizes(text, NUM_TOKENS)
    except ValueError as error:
        assert one_line(error)
    else:
        validate_group_sizes(sizes, NUM_TOKENS)
    assert time.monotonic() - start < 2


@settings(deadline=None, max_examples=250)
@given(
    st.one_of(
        st.binary(),
        JSON.map(lambda value: json.dumps(value).encode()),
        damaged(b"[[1, 8], [1, 1, 1, 6], [1, 2, 2, 4]]"),
    )
)
@example(b"[[9" + b"9" * 4000 + b"], [1]]")
@example(b"[[-" + b"9" * 4000 + b"]]")
def test_any_list_file(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sizes.json"
        path.write_bytes(content)
        try:
            lists = read_group_sizes_list(path, NUM_TOKENS)
        except ValueError as error:
            assert one_line(error)
            assert str(error).startswith(str(path))
        else:
            assert lists
            for sizes in lists:
                validate_group_sizes(sizes, NUM_TOKENS)


def check_order_file(suffix: str, content: bytes, num_tokens: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"orders{suffix}"
        path.write_bytes(content)
        try:
            orders = read_orders(path, num_tokens)
        except ValueError as error:
            assert one_line(error)
            assert str(error).startswith(str(path))
        else:
            expected = np.arange(orders.shape[1] if num_tokens is None else num_tokens)
            assert (np.sort(orders, axis=1) == expected).all()
            assert len(orders) >= 1


def good_orders(suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"orders{suffix}"
        write_orders(path, random_orders(3, NUM_TOKENS))
        return path.read_bytes()


@settings(deadline=None, max_examples=250)
@given(
    st.one_of(
        damaged(good_orders(".json")),
        JSON.map(lambda value: json.dumps(value).encode()),
        st.binary(),
    ),
    st.sampled_from([None, NUM_TOKENS]),
)
@example(b"[[" + b"9" * 5000 + b"]]", None)
def test_any_json_order_file(content: bytes, num_tokens: int | None) -> None:
    check_order_file(".json", content, num_tokens)


@settings(deadline=None, max_examples=250)
@given(
    st.one_of(
        damaged(good_orders(".npy")),
        HEADERS,
        st.binary().map(lambda tail: b"\x93NUMPY\1\0" + tail),
        st.binary().map(lambda tail: b"PK\3\4" + tail),
        st.binary(),
    ),
    st.sampled_from([None, NUM_TOKENS]),
)
def test_any_npy_order_file(content: bytes, num_tokens: int | None) -> None:
    check_order_file(".npy", content, num_tokens)


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
    "void.json": b"[" + b"[]," * (MEGABYTE // 3) + b"[]]",
    "large.json": b"[[" + b"9" * 4000 + (b"," + b"9" * 4000) * 200 + b"]]",
    "exponent.json": b"[[1e999, -1E999, NaN]]",
    **{
        name: HOSTILE_ORDERS[name]
        for name in ("brackets.json", "braces.json", "number.json", "text.json")
    },
}


@pytest.mark.parametrize(
    ("imports", "read", "files"),
    [
        ("from orders.order_file import read_orders", "read_orders(path)", HOSTILE_ORDERS),
        ("from orders.order_file import read_orders", "read_orders(path, 256)", HOSTILE_ORDERS),
        (
            "from orders.group_sizes import read_group_sizes_list",
            "read_group_sizes_list(path, 256)",
            HOSTILE_LISTS,
        ),
    ],
)
def test_small_files_take_little_memory_and_time(
    tmp_path: Path, imports: str, read: str, files: dict[str, bytes]
) -> None:
    for name, content in files.items():
        assert len(content) < 1.1 * MEGABYTE
        (tmp_path / name).write_bytes(content)
    result = read_confined(imports, read, *sorted(tmp_path.iterdir()))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == len(files)
    assert max(map(len, lines)) < 1000
