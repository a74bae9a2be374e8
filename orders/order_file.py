"""Reading, checking and writing generation orders."""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from util.arrays import map_npy
from util.files import open_file, replacing

logger = logging.getLogger(__name__)

# Rows checked at once: bounds the memory used beside the orders themselves.
_ROWS = 2048


def compact_dtype(num_tokens: int) -> np.dtype:
    """Return the smallest unsigned type that holds every position."""
    return np.min_scalar_type(num_tokens - 1)


def validate_orders(orders: Any, num_tokens: int | None = None) -> np.ndarray:
    """Return orders (M, N) as an array, or a ValueError of the first row that is no permutation."""
    if not isinstance(orders, np.ndarray):
        orders = _stack([np.asarray(row) for row in orders], num_tokens)
    if orders.ndim != 2 or orders.dtype.kind not in "iu":
        found = f"found an array of shape {orders.shape} and type {orders.dtype}"
        raise ValueError(f"{found}, expected rows of whole numbers")
    count, length = orders.shape
    if num_tokens is not None and length != num_tokens:
        raise ValueError(f"found orders of length {length}, expected {num_tokens}")
    if not count or not length:
        raise ValueError("found no orders, expected at least one")
    for start in range(0, count, _ROWS):
        block = np.asarray(orders[start : start + _ROWS], dtype=np.int64)
        outside = (block < 0) | (block >= length)
        seen = np.zeros(block.shape, dtype=bool)
        np.put_along_axis(seen, np.where(outside, 0, block), True, axis=1)
        bad = outside.any(axis=1) | ~seen.all(axis=1)
        if bad.any():
            row = int(bad.argmax())
            positions, times = np.unique(block[row], return_counts=True)
            found = f"{positions[times.argmax()]} repeated, expected every position once"
            if outside[row].any():
                found = f"{block[row][outside[row]][0]}, expected 0..{length - 1}"
            raise ValueError(f"row {start + row}: found position {found}")
    return orders


def _stack(rows: list[np.ndarray], num_tokens: int | None) -> np.ndarray:
    """One array of all rows, which must be as long as expected or as the first."""
    for number, row in enumerate(rows):
        if row.ndim != 1 or row.dtype.kind not in "iu":
            raise ValueError(f"row {number}: expected a list of whole numbers")
        length = rows[0].size if num_tokens is None else num_tokens
        if row.size != length:
            raise ValueError(f"row {number}: found length {row.size}, expected {length}")
    return np.stack(rows) if rows else np.empty((0, num_tokens or 0), dtype=np.int64)


def require_suffix(path: str | Path) -> str:
    """Return the suffix of an order file; raise `ValueError` for any but `.json` and `.npy`."""
    suffix = Path(path).suffix
    if suffix not in (".json", ".npy"):
        raise ValueError(f"found {Path(path).name!r}, expected a name ending in .json or .npy")
    return suffix


def steps_in_name(path: str | Path) -> int | None:
    """Read the steps that an order file's name states, as published ones do, if it does."""
    steps = re.search(r"(?:^|_)steps(\d{1,4})(?:_|$)", Path(path).stem)
    return int(steps[1]) if steps else None


def warn_of_steps(
    path: str | Path,
    steps: Sequence[int],
    flag: str = "--lpd_order_file",
    steps_flag: str = "--generation_steps",
) -> None:
    """Warn, by the flags that named them, if a file's name states other steps than are used."""
    made = steps_in_name(path)
    others = [str(count) for count in steps if count != made]
    if made is not None and others:
        logger.warning(
            "%s: %s is named for %d steps and used for %s: positions that it decodes together are "
            "not chosen for that, which costs quality; expected %s %d, or a file made for these "
            "steps (orders/run_lpd_order.py)",
            *(flag, path, made, ", ".join(others), steps_flag, made),
        )


def read_orders(path: str | Path, num_tokens: int | None = None) -> np.ndarray:
    """Read valid orders (M, N) from a file, or raise OSError or a ValueError that says where.

    It is a JSON list of lists as published, or this project's compact `.npy`, which is mapped from
    the disk, read-only: processes on one machine share it.
    """
    is_json = require_suffix(path) == ".json"
    path = Path(path)
    try:
        orders = _read_json(path, num_tokens) if is_json else map_npy(path)
        return validate_orders(orders, num_tokens)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# A row of a JSON list of lists, and what divides it from the next or ends the list.
_ROW = re.compile(r"\s*(\[[^][]*\])\s*([],])\s*")


def _read_json(path: Path, num_tokens: int | None) -> np.ndarray:
    """The rows are parsed one at a time: all at once would take 20 times the memory."""
    with open_file(path) as stream:
        content = stream.read()
    # Nothing else occurs in lists of lists of whole numbers: no text, fraction, true or null.
    foreign = content.translate(None, b"0123456789-[], \t\r\n")[:1]
    if foreign:
        found = f"found {foreign!r} at byte {content.index(foreign)}"
        raise ValueError(f"{found}, expected a JSON list of lists of whole numbers")
    text = content.decode("ascii").lstrip()
    if not text.startswith("["):
        raise ValueError("damaged JSON: found no list, expected one of lists of whole numbers")
    rows, at, divider = [], 1, ","
    while divider == ",":
        try:
            if not (match := _ROW.match(text, at)):
                raise ValueError("expected a list of whole numbers, then , or ]")
            row = np.array(json.loads(match[1]), dtype=np.int64)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"damaged JSON in the row at character {at}: {error}") from error
        narrow = row.astype(compact_dtype(max(row.size, 1)))
        rows.append(narrow if np.array_equal(narrow, row) else row)
        at, divider = match.end(), match[2]
    if at < len(text):
        raise ValueError(f"damaged JSON: found {text[at : at + 20]!r} after the end of the list")
    return _stack(rows, num_tokens)


def write_orders(path: str | Path, orders: Any) -> None:
    """Write valid orders in the form the file's name asks for, complete or not at all."""
    path = Path(path)
    suffix = require_suffix(path)
    orders = validate_orders(orders)
    with replacing(path) as temporary, temporary.open("wb") as file:
        if suffix == ".npy":
            np.save(file, orders.astype(compact_dtype(orders.shape[1])), allow_pickle=False)
        else:
            for number, row in enumerate(orders):
                file.write(b", " if number else b"[")
                file.write(json.dumps(row.tolist()).encode())
            file.write(b"]")
