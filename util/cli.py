"""Command lines: argument types that check their range, and complaints of one line."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from typing import NoReturn

from util.errors import UserError


class _HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default of every flag that has one worth saying."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # By identity: 0 and 1 are worth saying, and they equal False and True.
        if action.default == "" or any(action.default is no for no in (None, False, True)):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose help says defaults and whose complaints are one line."""

    def __init__(self, **options: object) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpWithDefaults, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def whole(lowest: int = 0, highest: int = 10**9) -> Callable[[str], int]:
    """The type of a flag that takes a whole number from `lowest` to `highest`."""
    expected = f"a whole number from {lowest} to {highest}"
    return _ranged(int, expected, lambda value: lowest <= value <= highest)


def pixels() -> Callable[[str], int]:
    """The type of a flag that takes the side of an image."""
    return whole(1, 2**14)


def number(lowest: float = 0.0, highest: float = math.inf) -> Callable[[str], float]:
    """The type of a flag that takes a finite number of at least `lowest`, at most `highest`."""
    expected = f"a finite number of at least {lowest:g}"
    if highest < math.inf:
        expected = f"a number from {lowest:g} to {highest:g}"
    return _ranged(float, expected, lambda value: lowest <= value <= highest and value < math.inf)


def share() -> Callable[[str], float]:
    """The type of a flag that takes a probability."""
    return _ranged(float, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def random_seed(text: str) -> int:
    """The type of a flag that names the random streams."""
    limit = 2**63
    expected = "a whole number of at most 63 bits"
    return _ranged(int, expected, lambda value: -limit <= value < limit)(text)


def available_cores() -> int:
    """Cores of this process's affinity mask where the system has one, else of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ranged(
    kind: Callable[[str], float], expected: str, fits: Callable[[float], bool]
) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")
        return value

    return parse
