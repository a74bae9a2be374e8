"""Logging and progress bars: rank 0 speaks, the others keep to warnings and worse."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

T = TypeVar("T")

__all__ = ["logging_redirect_tqdm", "progress", "setup"]


def setup() -> None:
    """Send this project's log to standard error, from rank 0 only."""
    main_process = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(
        level=logging.INFO if main_process else logging.ERROR,
        format="%(asctime)s %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    logging.captureWarnings(True)


def progress(items: Iterable[T] | None = None, **options: Any) -> tqdm:
    """A tqdm bar on rank 0; off a terminal (a log file) it is redrawn every ten seconds only."""
    on_terminal = sys.stderr.isatty()
    options.setdefault("disable", int(os.environ.get("RANK", "0")) != 0)
    options.setdefault("dynamic_ncols", on_terminal)
    options.setdefault("mininterval", 0.2 if on_terminal else 10.0)
    return tqdm(items, **options)
