"""Command lines: argument types that check their range, and complaints of one line."""

import argparse
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

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


def whole(lowest: int = 0, highest: int = 10**9, expected: str = "") -> Callable[[str], int]:
    """Make the type of a flag that takes a whole number from `lowest` to `highest`."""
    expected = expected or f"a whole number from {lowest} to {highest}"
    return partial(_parse, int, lowest, highest, expected)


def number(lowest: float = 0.0, highest: float = math.inf) -> Callable[[str], float]:
    """Make the type of a flag that takes a finite number from `lowest` to `highest`."""
    expected = f"a finite number of at least {lowest:g}"
    if highest < math.inf:
        expected = f"a number from {lowest:g} to {highest:g}"
    return partial(_parse, float, lowest, min(highest, math.nextafter(math.inf, 0)), expected)


share = partial(number, 0, 1)  # of a flag that takes a probability


def _parse(kind: Callable, lowest: float, highest: float, expected: str, text: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan  # in no range
    if not lowest <= value <= highest:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")
    return value


def available_cores() -> int:
    """Count the cores of this process's affinity mask where the system has one, else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# What several commands take, said once. A command names its flags, and what differs there.
FLAGS: dict[str, dict[str, Any]] = {
    "--img_size": dict(type=whole(1, 2**14), default=256, help="side of the image, pixels"),
    "--class_num": dict(type=whole(1), default=1000, help="number of classes"),
    "--class_names": dict(
        metavar="FILE",
        help="names of all classes: text with one a line, or JSON (a list, or names by number);"
        " digits for the demo's",
    ),
    "--vqgan_path": dict(default="tokenizers/vq_ds16_c2i.pt", help="tokenizer, or llamagen"),
    "--vqgan_stride": dict(type=whole(1), help="pixels per token"),
    "--vqgan_vocab_size": dict(type=whole(1), help="number of codes"),
    "--pretrained_ckpt": dict(help="LPD checkpoint, or a published name: lpd_l_256 ..."),
    "--data_path": dict(default="./data/imagenet", help="ImageFolder, or a plain tar of one"),
    "--cached_path": dict(default="", help="folder of the token cache"),
    "--flip_prob": dict(type=share(), default=0.5, help="share of mirrored images"),
    "--num_workers": dict(type=whole(0), default=10, help="image-decoding processes"),
    # Both say the default: the first of two flags of one `dest` decides it.
    "--pin_mem": dict(action="store_true", default=True, help="page-locked memory; the default"),
    "--no_pin_mem": dict(action="store_false", dest="pin_mem", help="ordinary memory"),
    "--generation_steps": dict(type=whole(1), help="K; replaces --group_sizes"),
    "--group_sizes": dict(help="tokens per step, for example '[1]*4 + [2]*126'"),
    "--orders": dict(
        nargs="+",
        metavar="ORDER",
        help="lpd (published repulsion), lpd:R, lpd:R:P (repulsion R, proximity P), random, "
        "raster, or an order file or its published name",
    ),
    "--steps": dict(nargs="+", type=whole(1), metavar="K", help="numbers of decoding steps"),
    "--proximity_threshold": dict(
        type=number(), default=1.0, help="least score of a near position, in edge neighbours"
    ),
    "--repulsion_threshold": dict(
        type=number(),
        help="grid steps; by default the published value of this grid and step count, else 1",
    ),
    "--cfg": dict(type=number(), default=1.0, help="guidance strength; 1 is none"),
    "--feature_extractor": dict(default="inception", help="what scores: inception, digits or none"),
    "--feature_extractor_weights": dict(help="its weights file"),
    "--epochs": dict(type=whole(1), help="passes over the data"),
    "--batch_size": dict(type=whole(1), default=64, help="images at a time"),
    "--bf16": dict(action="store_true", help="bfloat16 autocast"),
    "--device": dict(default="cuda", help="cuda or cpu"),
    "--seed": dict(
        type=whole(-(2**63), 2**63 - 1, "a whole number of at most 63 bits"),
        default=0,
        help="names all random streams",
    ),
    "--output": dict(type=Path, help="JSON file for all figures"),
    "--output_dir": dict(default="./output_dir", help="where results go"),
    "--debug": dict(action="store_true", help="show tracebacks of bad input"),
}


def add_flags(to: argparse._ActionsContainer, *names: str, **changes: object) -> None:
    """Add `names` of `FLAGS` to a parser or a group; `changes` of `add_argument` replace theirs."""
    for name in names:
        to.add_argument(name, **{**FLAGS[name], **changes})
