"""How many tokens each decoding step makes: published tables, the cosine rule, users' lists."""

import ast
import functools
import json
import math
import re
import reprlib
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

import numpy as np

from util.errors import blame
from util.files import read_json

# The shape of the published tables and the cosine rule; others are powers.
RULE = "rule"

# What text of group sizes may hold; real lists stay far below these limits.
_TEXT = re.compile(r"(?!.*[0-9]{10})[0-9\s\[\](),*+-]*", re.ASCII | re.DOTALL)
_MAX_CHARACTERS = 20_000
_MAX_GROUPS = 1 << 16


@functools.cache
def _published(num_tokens: int) -> dict[int, tuple[int, ...]]:
    """The published lists of a grid by number of steps, most steps first; empty without any."""
    tables = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    image_size = {256: "256", 1024: "512"}.get(num_tokens)  # at stride 16
    return {int(steps): tuple(sizes) for steps, sizes in tables.get(image_size, {}).items()}


def group_sizes(num_tokens: int, steps: int) -> list[int]:
    """Return the published list of N tokens in K steps, else that of the cosine rule.

    K sizes that sum to N, the first 1, none smaller than the one before (method section 5); a
    ValueError unless 2 <= K <= N, or K = N = 1.
    """
    published = _published(num_tokens).get(steps)
    return list(published) if published else cosine_group_sizes(num_tokens, steps)


def cosine_group_sizes(num_tokens: int, steps: int) -> list[int]:
    """Apply the cosine rule (method section 5), as `group_sizes`."""
    if not _splits(num_tokens, steps):
        expected = f"expected {min(2, num_tokens)} to {num_tokens} for {num_tokens} tokens"
        raise ValueError(f"found {steps} steps, {expected}")
    cosines = [math.cos(math.pi * i / (2 * steps)) for i in range(steps + 1)]
    unrounded = -num_tokens * np.diff(cosines)
    sizes = np.maximum(np.rint(unrounded), 1).astype(np.int64)
    sizes[0] = 1
    # That size moves by 1 which stays sorted and is then closest to its unrounded value.
    while sizes.sum() != num_tokens:
        change = 1 if sizes.sum() < num_tokens else -1
        moved = sizes + change
        # Nine decimals, far coarser than the error of a float64 cosine: equal distances do tie.
        distance = np.abs(moved - unrounded).round(9)
        distance[0] = np.inf
        if change > 0:
            distance[:-1][moved[:-1] > sizes[1:]] = np.inf
        else:
            distance[1:][moved[1:] < sizes[:-1]] = np.inf
        sizes[steps - 1 - np.argmin(distance[::-1])] += change  # of equals the later one
    return sizes.tolist()


def _splits(num_tokens: int, steps: int) -> bool:
    """Whether there is a list: only the first group is always 1."""
    return 2 <= steps <= num_tokens or steps == num_tokens == 1


def default_steps(num_tokens: int) -> int:
    """Return an image's steps: the published 20 of 256 and 48 of 1024 tokens, else 1.5 a row."""
    return {256: 20, 1024: 48}.get(num_tokens) or math.ceil(1.5 * math.sqrt(num_tokens))


def remaining_group_sizes(num_tokens: int, num_known: int, steps: int | None = None) -> list[int]:
    """Split the N - M tokens that are not known yet, along the rest of the cosine curve.

    The curve's angles from where as many tokens are generated as are known here to its end are
    divided equally (method section 10). With nothing known these are `group_sizes`, with all known
    none. A ValueError unless K is in 1..N - M; by default it is as large a share of
    `default_steps`, rounded up, as N - M is of N.
    """
    left = num_tokens - num_known
    if not left:
        return []
    if steps is None:
        steps = math.ceil(min(default_steps(num_tokens), num_tokens) * left / num_tokens)
    if not num_known:
        return group_sizes(num_tokens, steps)
    if not 1 <= steps <= left:
        raise ValueError(f"found {steps} steps, expected 1 to {left} for {left} tokens")
    angles = np.linspace(math.acos(left / num_tokens), math.pi / 2, steps + 1)
    return sorted(_sizes_between(np.rint(left - num_tokens * np.cos(angles)), left))


def shaped_group_sizes(num_tokens: int, steps: int, shape: str) -> list[int]:
    """Make K group sizes of N tokens: 1 first, then growing as the shape says.

    It is `rule`, for `group_sizes`, or a positive number a, for which about
    1 + (N - 1) * (k / (K - 1)) ** a tokens are known after step k + 1: 1 for equal groups, 2 for
    groups that grow in proportion to their number. A ValueError if there is no such split.
    """
    if shape == RULE:
        return group_sizes(num_tokens, steps)
    power = 0.0
    with suppress(ValueError):
        power = float(shape)
    if not 0 < power < np.inf:
        raise ValueError(f"found shape {shape!r}, expected {RULE} or a positive number")
    if not 2 <= steps <= num_tokens:
        raise ValueError(f"found {steps} steps, expected 2 to {num_tokens} for {num_tokens} tokens")
    grown = (np.arange(steps) / (steps - 1)) ** power
    return [1, *_sizes_between(np.rint(1 + (num_tokens - 1) * grown), num_tokens)]


def _sizes_between(known: np.ndarray, total: int) -> list[int]:
    """Sizes of the steps between (K + 1,) counts that end at `total`, moved to be at least 1."""
    step = np.arange(len(known))
    known = np.maximum.accumulate(known.astype(np.int64) - step) + step
    return np.diff(np.minimum(known, total - step[::-1])).tolist()


def training_group_sizes(num_tokens: int) -> list[list[int]]:
    """Return the lists that a training step draws from uniformly (method section 3)."""
    if published := _published(num_tokens):
        return [list(sizes) for sizes in published.values()]
    # A tiny grid has no list for some of these, and would repeat others.
    counts = dict.fromkeys([*(num_tokens // part for part in (1, 2, 4, 8)), 12, 6])
    return [group_sizes(num_tokens, steps) for steps in counts if _splits(num_tokens, steps)]


def validate_group_sizes(sizes: Sequence[int], num_tokens: int) -> None:
    """Raise `ValueError` unless `sizes` are positive whole numbers that sum to `num_tokens`."""
    for step, size in enumerate(sizes):
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
            raise ValueError(f"group {step}: found {size!r:.40}, expected a whole number")
        if size < 1:
            raise ValueError(f"group {step}: found size {reprlib.repr(size)}, expected at least 1")
    if (total := sum(int(size) for size in sizes)) != num_tokens:
        found = f"found {len(sizes)} group sizes that sum to {reprlib.repr(total)}"
        raise ValueError(f"{found}, expected a sum of {num_tokens}")


def read_group_sizes_list(path: str | Path, num_tokens: int) -> list[list[int]]:
    """Read a JSON list of group-size lists, each summing to `num_tokens`, or raise ValueError."""
    lists = read_json(path)
    if not lists or not isinstance(lists, list) or not all(isinstance(one, list) for one in lists):
        kind = "an empty list" if lists == [] else "something else"
        raise ValueError(f"{path}: found {kind}, expected a JSON list of lists of group sizes")
    for number, sizes in enumerate(lists):
        with blame(f"{path}: list {number}"):
            validate_group_sizes(sizes, num_tokens)
    return lists


def parse_group_sizes(text: str, num_tokens: int) -> list[int]:
    """Read group sizes written as Python would: `[1] * 256`, `[1]*4 + [2]*126`, `(1, 2, 5)`.

    Only lists or tuples of whole numbers, repeated with `*` and joined with `+`, are understood;
    nothing is evaluated. A ValueError says what else the text is, or that the sizes do not fit.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"found {len(text)} characters, expected at most {_MAX_CHARACTERS}")
    depth = accumulate((character in "[(") - (character in ")]") for character in text)
    # Checked before Python's parser sees the text: it recurses once per level and operator.
    deep = max(depth, default=0) > 50 or sum(map(text.count, "*+-")) > 200
    sizes = None
    if _TEXT.fullmatch(text) and not deep:
        with suppress(SyntaxError):
            sizes = _value(ast.parse(text.strip(), mode="eval").body)
    if not isinstance(sizes, list):
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        expected = "expected group sizes such as '[1] * 256', '[1]*4 + [2]*126' or '[1, 3]'"
        raise ValueError(f"found {shown!r}, {expected}")
    validate_group_sizes(sizes, num_tokens)
    return sizes


def _value(node: ast.expr) -> int | list[int] | None:
    """The number or list of numbers that a syntax tree stands for; None for anything else."""
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))):
            return -number
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            numbers = [_value(element) for element in elements]
            return numbers if all(isinstance(value, int) for value in numbers) else None
        case ast.BinOp(left=left, op=ast.Mult() | ast.Add() as operation, right=right):
            first, second = _value(left), _value(right)
            repeats = isinstance(operation, ast.Mult)
            if repeats and isinstance(first, int):
                first, second = second, first
            if isinstance(first, list) and isinstance(second, int if repeats else list):
                groups = len(first) * second if repeats else len(first) + len(second)
                if groups > _MAX_GROUPS:
                    raise ValueError(f"found {groups} groups, expected at most {_MAX_GROUPS}")
                return first * second if repeats else first + second
    return None
