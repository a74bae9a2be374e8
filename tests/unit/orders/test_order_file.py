"""Order files: both forms, and how they can be wrong; the page of bad input has more."""

import json
from pathlib import Path

import numpy as np
import pytest

from orders import order_file
from orders.locality import random_orders
from orders.order_file import read_orders, validate_orders, write_orders


@pytest.mark.parametrize("suffix", [".json", ".npy"])
@pytest.mark.parametrize("num_tokens", [1, 9, 256, 289])
def test_round_trip(tmp_path: Path, suffix: str, num_tokens: int) -> None:
    path, orders = tmp_path / f"orders{suffix}", random_orders(5, num_tokens)
    write_orders(path, orders)
    for expected in (None, num_tokens):
        read = read_orders(path, expected)
        assert read.dtype == (np.uint8 if num_tokens <= 256 else np.uint16)
        np.testing.assert_array_equal(read, orders)
        assert suffix == ".json" or (isinstance(read, np.memmap) and not read.flags.writeable)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ValueError, match=f"length {num_tokens}, expected 7"):
        read_orders(path, 7)
    if suffix == ".json":  # as published, and however it is laid out
        assert path.read_text() == json.dumps(orders.tolist())
        path.write_text(json.dumps(orders.tolist(), indent=2) + "\n")
        np.testing.assert_array_equal(read_orders(path), orders)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "damaged JSON in the row at character 1"),
        ("[[]]", "found no orders"),
        ("[[0, 1, 2, 3] [3, 2, 1, 0]]", "row at character 1: expected a list .*, then , or ]"),
        ("[[0, 1, 2, 3]] []", r"found '\[\]' after the end"),
        ("[[0, 1, 2, 260]]", r"row 0: found position 260, expected 0\.\.3"),
        ("[[0, 1, 2, 99999999999999999999]]", "damaged JSON in the row at character 1"),
    ],
)
def test_damaged_json(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "orders.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"^{path}: .*{message}"):
        read_orders(path)


def test_bad_arrays(tmp_path: Path) -> None:
    whole = [0, 1], [[[0, 1]]], [[0, 0]], [[0, 2]]
    others = np.array([[0, 1]], dtype=object), np.zeros((0, 2), dtype=np.uint8), [[False, True]]
    for array in (*whole, *others):
        np.save(tmp_path / "orders.npy", array)
        with pytest.raises(ValueError, match=r"orders\.npy: "):
            read_orders(tmp_path / "orders.npy")


def test_bad_rows_are_found_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_file, "_ROWS", 4)
    for row in range(10):
        orders = random_orders(10, 9)
        orders[row, 3] = orders[row, 5]
        with pytest.raises(ValueError, match=f"row {row}: found position {orders[row, 5]} repeat"):
            validate_orders(orders, 9)


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "orders.json"
    write_orders(path, [[0, 1]])
    with pytest.raises(ValueError, match="repeated"):
        write_orders(path, [[0, 0]])
    with pytest.raises(ValueError, match=r"expected a name ending in \.json or \.npy"):
        write_orders(tmp_path / "orders.npz", [[0, 1]])

    def fail(_: object) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(order_file.json, "dumps", fail)
    with pytest.raises(OSError, match="no space"):
        write_orders(path, [[1, 0]])
    assert [entry.name for entry in tmp_path.iterdir()] == ["orders.json"]
    assert path.read_text() == "[[0, 1]]"
