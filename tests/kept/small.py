"""Run a command with networks so small that their files can be kept.

    python tests/kept/small.py [--coarse] main_lpd.py FLAGS

`lpd_tiny` is 8 wide and 2 deep. `--coarse` rounds the weights that the command saves to multiples
of 1/16, so that a tokenizer, which cannot be that narrow, packs well.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import models.lpd
from models.lpd import LPD

WIDTH, DEPTH, HEADS = 8, 2, 2
# What stands for lpd_tiny in the tables that its size and itself are looked up in.
REPLACED = (
    (models.lpd.SIZES, (WIDTH, DEPTH, HEADS)),
    (
        models.lpd.MODELS,
        partial(LPD, decoder_embed_dim=WIDTH, decoder_depth=DEPTH, decoder_num_heads=HEADS),
    ),
)


def coarsely(save: Callable[..., None]) -> Callable[..., None]:
    """`torch.save` that rounds the matrices under `model`, but not the codes."""

    def rounded(content: dict[str, Any], *rest: object, **options: object) -> None:
        model = dict(content["model"])
        for name, value in model.items():
            if value.dim() > 1 and not name.startswith("quantize."):
                model[name] = (value * 16).round() / 16
        save({**content, "model": model}, *rest, **options)

    return rounded


def main() -> None:
    del sys.argv[0]
    if sys.argv[0] == "--coarse":
        del sys.argv[0]
        torch.save = coarsely(torch.save)
    for table, value in REPLACED:
        table["lpd_tiny"] = value
    root = Path(models.lpd.__file__).parents[1]
    runpy.run_path(str(root / sys.argv[0]), run_name="__main__")


if __name__ == "__main__":
    main()
