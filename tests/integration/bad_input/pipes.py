"""Bad input of several commands: a pipe where a file is expected, which nobody writes to."""

from __future__ import annotations

import os
from pathlib import Path

from tests.integration.bad_input.commands import CACHING
from tests.integration.bad_input.evaluation import EVALUATION
from tests.integration.bad_input.files import Spoil
from tests.integration.bad_input.table import Case, Group
from tests.integration.bad_input.training import TRAINING

_FOUND = "is a pipe, a folder or a device, expected a file"


def _piping(name: str) -> Spoil:
    """Puts a pipe there."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


PIPES_IN_TRAINING = Group(
    "Pipes instead of files: training",
    TRAINING.script,
    TRAINING.flags,
    (
        Case(
            "",
            "the cache's index",
            f"--cached_path: cache/index.json: {_FOUND}",
            _piping("cache/index.json"),
        ),
        Case(
            "--cached_path published",
            "a file of a published cache",
            f"--cached_path: published/cat/1.npz cannot be read ({_FOUND}), expected an .npz with "
            "integer arrays 'indices' and 'indices_flip'",
            _piping("published/cat/1.npz"),
        ),
        Case(
            "--group_sizes_list pipe",
            "the lists of group sizes",
            f"--group_sizes_list: pipe: {_FOUND}",
            _piping("pipe"),
        ),
    ),
)

PIPES_IN_EVALUATION = Group(
    "Pipes instead of files: evaluation",
    EVALUATION.script,
    EVALUATION.flags,
    tuple(
        Case(
            f"--order lpd --lpd_order_file pipe{suffix}",
            "the orders",
            f"--lpd_order_file: pipe{suffix}: {_FOUND}",
            _piping(f"pipe{suffix}"),
        )
        for suffix in (".json", ".npy")
    ),
)

PIPES_IN_CACHING = Group(
    "Pipes instead of files: caching",
    CACHING.script,
    CACHING.flags,
    (
        Case(
            "",
            "an image",
            f"data/dog/1.png: cannot be decoded ({_FOUND}), expected an image file",
            _piping("data/dog/1.png"),
        ),
    ),
)
