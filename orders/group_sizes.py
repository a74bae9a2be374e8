"""How many tokens each decoding step makes: published tables, the cosine rule, users' lists."""

from __future__ import annotations

import ast
import functools
import json
import math
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from util.files import read_json

# Image size (at stride 16) under which the published tables file the lists of N tokens.
_TABLE_KEYS = {256: "256", 1024: "512"}
# Of the published evaluations (section 9).
_DEFAULT_STEPS = {256: 20, 1024: 48}

# The shape of the published tables and the cosine rule; others are powers.
RULE = "rule"

# What text of group sizes may hold; real lists stay far below these limits.
_TEXT = re.compile(r"(?!.*[0-9]{10})[0-9\s\[\](),*+-]*", re.ASCII | re.DOTALL)
_MAX_CHARACTERS = 20_000
_MAX_OPERATORS = 200
_MAX_DEPTH = 50
_MAX_GROUPS = 1 << 16


@functools.cache
def _published(num_tokens: int) -> dict[int, tuple[int, ...]]:
    """The published lists of a grid by number of steps, most steps first; empty without any."""
    if num_tokens not in _TABLE_KEYS:
        return {}
    tables = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    lists = tables[_TABLE_KEYS[num_tokens]]
    return {int(steps): tuple(sizes) for steps, sizes in lists.items()}


def group_sizes(num_tokens: int, steps: int) -> list[int]:
    """Group sizes of a grid and number of steps: the published list, else the cosine rule.

    Args:
        num_tokens: tokens of one image, N.
        steps: decoding steps, K; 2 <= K <= N, or K = N = 1.

    Returns:
        K sizes that sum to N, the first 1, none smaller than the one before (method section 5).

    Raises:
        ValueError: no list exists for this pair.
    """
    published = _published(num_tokens).get(steps)
    return list(published) if published else cosine_group_sizes(num_tokens, steps)


def cosine_group_sizes(num_tokens: int, steps: int) -> list[int]:
    """The cosine rule of method section 5; arguments, result and errors as for `group_sizes`.

    Sizes start from round(N * (cos(a_i) - cos(a_{i+1}))), at least 1, with a_i = pi * i / (2K) and
    the first size fixed at 1. Until they sum to N, the size moves by 1 that stays sorted and is
    then closest to its unrounded value. Closeness is compared to nine decimals, far coarser than
    the error of a float64 cosine, so that equal distances really tie; the later size then moves.
    """
    if not (2 <= steps <= num_tokens or steps == num_tokens == 1):
        raise ValueError(f"found {steps} steps, expected 2 to {num_tokens} for {num_tokens} tokens")
    cosines = [math.cos(math.pi * i / (2 * steps)) for i in range(steps + 1)]
    unrounded = -num_tokens * np.diff(cosines)
    sizes = np.maximum(np.rint(unrounded), 1).astype(np.int64)
    sizes[0] = 1
    while sizes.sum() != num_tokens:
        # Growing, only the last size is sure to have room; shrinking, only the first above 1.
        grow = sizes.sum() < num_tokens
        moved = sizes + (1 if grow else -1)
        stays_sorted = np.ones(steps, dtype=bool)
        if grow:
            stays_sorted[:-1] = moved[:-1] <= sizes[1:]
        else:
            stays_sorted[1:] = moved[1:] >= sizes[:-1]
        stays_sorted[0] = False
        distance = np.where(stays_sorted, np.abs(moved - unrounded).round(9), np.inf)
        chosen = steps - 1 - np.argmin(distance[::-1])
        sizes[chosen] = moved[chosen]
    return sizes.tolist()


def default_steps(num_tokens: int) -> int:
    """Steps for a whole image: the published 20 of 256 and 48 of 1024 tokens, else 1.5 a row."""
    return _DEFAULT_STEPS.get(num_tokens) or math.ceil(1.5 * math.sqrt(num_tokens))


def remaining_group_sizes(num_tokens: int, num_known: int, steps: int | None = None) -> list[int]:
    """Group sizes for the tokens that are not known yet, of an image of which some are.

    They follow the cosine curve of section 5 from where as many tokens are generated on it as are
    known here: its angles are divided equally between there and its end. So the first group need
    not be 1, and the more is known, the more alike are the groups. With nothing known they are
    `group_sizes`.

    Args:
        num_tokens: tokens of one image, N.
        num_known: M, in 0..N.
        steps: K, in 1..N - M (for M = 0, see `group_sizes`); by default as large a share of
            `default_steps`, rounded up, as N - M is of N.

    Returns:
        K sizes of at least 1 that sum to N - M; none if all is known.

    Raises:
        ValueError: no list exists for these numbers.
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
    made = np.rint(left - num_tokens * np.cos(angles)).astype(np.int64)
    # At least one token a step, now and in all steps to come.
    step = np.arange(steps + 1)
    made = np.maximum.accumulate(made - step) + step
    made = np.minimum(made, left - step[::-1])
    return sorted(np.diff(made).tolist())


def shaped_group_sizes(num_tokens: int, steps: int, shape: str) -> list[int]:
    """Group sizes of a shape: 1 first, then growing as the shape says.

    Args:
        num_tokens: N.
        steps: K.
        shape: `rule` for the published table or cosine rule, or a positive number a, for which
            about 1 + (N - 1) * (k / (K - 1)) ** a tokens are known after step k + 1: 1 for equal
            groups, 2 for groups that grow in proportion to their number.

    Raises:
        ValueError: no such shape, or no split into so many steps.
    """
    if shape == RULE:
        return group_sizes(num_tokens, steps)
    try:
        power = float(shape)
    except ValueError:
        power = 0.0
    if not 0 < power < np.inf:
        raise ValueError(f"found shape {shape!r}, expected {RULE} or a positive number")
    if not 2 <= steps <= num_tokens:
        raise ValueError(f"found {steps} steps, expected 2 to {num_tokens} for {num_tokens} tokens")
    step = np.arange(steps)
    known = np.rint(1 + (num_tokens - 1) * (step / (steps - 1)) ** power).astype(np.int64)
    # At least one token a step, now and in all steps to come.
    known = np.maximum.accumulate(known - step) + step
    known = np.minimum(known, num_tokens - step[::-1])
    return np.diff(known, prepend=0).tolist()


def training_group_sizes(num_tokens: int) -> list[list[int]]:
    """The lists one training step draws from uniformly (method section 3).

    A grid with published lists uses all of them. Others use the lists of N, N/2, N/4, N/8, 12 and
    6 steps (rounded down), without those a tiny grid has no list for or would repeat.
    """
    published = _published(num_tokens)
    if published:
        return [list(sizes) for sizes in published.values()]
    lists: list[list[int]] = []
    for steps in (*(num_tokens // part for part in (1, 2, 4, 8)), 12, 6):
        valid = 2 <= steps <= num_tokens or steps == num_tokens == 1
        if valid and all(len(sizes) != steps for sizes in lists):
            lists.append(group_sizes(num_tokens, steps))
    return lists


def validate_group_sizes(sizes: Sequence[int], num_tokens: int) -> None:
    """Check that `sizes` are positive whole numbers that sum to `num_tokens`.

    Raises:
        ValueError: they are not; says what was found and expected.
    """
    for step, size in enumerate(sizes):
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
            raise ValueError(f"group {step}: found {size!r:.40}, expected a whole number")
        if size < 1:
            raise ValueError(f"group {step}: found size {reprlib.repr(size)}, expected at least 1")
    total = sum(int(size) for size in sizes)
    if total != num_tokens:
        raise ValueError(
            f"found {len(sizes)} group sizes that sum to {reprlib.repr(total)}, "
            f"expected a sum of {num_tokens}"
        )


def read_group_sizes_list(path: str | Path, num_tokens: int) -> list[list[int]]:
    """Read a JSON list of group-size lists, each summing to `num_tokens`.

    Raises:
        ValueError: the file is damaged or a list does not fit the grid.
        OSError: the file cannot be read.
    """
    lists = read_json(path)
    expected = "expected a JSON list of lists of group sizes"
    if not isinstance(lists, list) or not all(isinstance(sizes, list) for sizes in lists):
        raise ValueError(f"{path}: found something else, {expected}")
    if not lists:
        raise ValueError(f"{path}: found an empty list, {expected}")
    for number, sizes in enumerate(lists):
        try:
            validate_group_sizes(sizes, num_tokens)
        except ValueError as error:
            raise ValueError(f"{path}: list {number}: {error}") from error
    return lists


def parse_group_sizes(text: str, num_tokens: int) -> list[int]:
    """Read group sizes written as Python would: `[1] * 256`, `[1]*4 + [2]*126`, `(1, 2, 5)`.

    Only lists or tuples of whole numbers, repeated with `*` and joined with `+`, are understood;
    nothing is evaluated.

    Raises:
        ValueError: the text is anything else, or the sizes do not fit `num_tokens`.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"found {len(text)} characters, expected at most {_MAX_CHARACTERS}")
    # Checked before Python's parser sees the text: it recurses once per level and operator.
    if (
        not _TEXT.fullmatch(text)
        or sum(map(text.count, "*+-")) > _MAX_OPERATORS
        or _depth(text) > _MAX_DEPTH
    ):
        raise _not_understood(text)
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise _not_understood(text) from error
    sizes = _read_list(tree.body, text)
    validate_group_sizes(sizes, num_tokens)
    return sizes


def _not_understood(text: str) -> ValueError:
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return ValueError(
        f"found {shown!r}, expected group sizes such as '[1] * 256', '[1]*4 + [2]*126' or '[1, 3]'"
    )


def _depth(text: str) -> int:
    """Deepest nesting of brackets."""
    depth = deepest = 0
    for character in text:
        depth += (character in "[(") - (character in ")]")
        deepest = max(deepest, depth)
    return deepest


def _read_list(node: ast.expr, text: str) -> list[int]:
    """The group sizes a syntax tree stands for."""
    match node:
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            sizes = [_read_number(element, text) for element in elements]
        case ast.BinOp(op=ast.Add()):
            left, right = _read_list(node.left, text), _read_list(node.right, text)
            _check_length(len(left) + len(right))
            sizes = left + right
        case ast.BinOp(op=ast.Mult(), left=ast.List() | ast.Tuple() | ast.BinOp()):
            sizes = _repeat(_read_list(node.left, text), _read_number(node.right, text))
        case ast.BinOp(op=ast.Mult()):
            sizes = _repeat(_read_list(node.right, text), _read_number(node.left, text))
        case _:
            raise _not_understood(text)
    return sizes


def _repeat(sizes: list[int], times: int) -> list[int]:
    _check_length(len(sizes) * times)
    return sizes * times


def _check_length(groups: int) -> None:
    if groups > _MAX_GROUPS:
        raise ValueError(f"found {groups} groups, expected at most {_MAX_GROUPS}")


def _read_number(node: ast.expr, text: str) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            return -value
        case _:
            raise _not_understood(text)
