"""Bad input of several commands: a pipe where a file is expected, which nobody writes to."""

from __future__ import annotations

import os
from pathlib import Path

from tests.integration.bad_input.commands import CACHING
from tests.integration.bad_input.evaluation import EVALUATION
from tests.integration.bad_input.files import Spoil
from tests.integration.bad_input.table import Group, cases
from tests.integration.bad_input.training import TRAINING


def _piping(*names: str) -> Spoil:
    """Puts pipes there."""

    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)
            os.mkfifo(folder / name)

    return spoil


PIPES_IN_TRAINING = Group(
    "Pipes instead of files: training",
    TRAINING.script,
    TRAINING.flags,
    cases(
        """
        | the cache's index
          --cached_path: cache/index.json: is a pipe, a folder or a device, expected a file
        --cached_path published | a file of a published cache
          --cached_path: published/cat/1.npz cannot be read (is a pipe, a folder or a device,
          expected a file), expected an .npz with integer arrays 'indices' and 'indices_flip'
        --group_sizes_list pipe | the lists of group sizes
          --group_sizes_list: pipe: is a pipe, a folder or a device, expected a file
        """,
        {
            "the cache's index": _piping("cache/index.json"),
            "a file of a published cache": _piping("published/cat/1.npz"),
            "the lists of group sizes": _piping("pipe"),
        },
    ),
)

PIPES_IN_EVALUATION = Group(
    "Pipes instead of files: evaluation",
    EVALUATION.script,
    EVALUATION.flags,
    cases(
        """
        --order lpd --lpd_order_file pipe.json | the orders
          --lpd_order_file: pipe.json: is a pipe, a folder or a device, expected a file
        --order lpd --lpd_order_file pipe.npy | the orders
          --lpd_order_file: pipe.npy: is a pipe, a folder or a device, expected a file
        """,
        {"the orders": _piping("pipe.json", "pipe.npy")},
    ),
)

PIPES_IN_CACHING = Group(
    "Pipes instead of files: caching",
    CACHING.script,
    CACHING.flags,
    cases(
        """
        | an image
          data/dog/1.png: cannot be decoded (is a pipe, a folder or a device, expected a file),
          expected an image file
        """,
        {"an image": _piping("data/dog/1.png")},
    ),
)
