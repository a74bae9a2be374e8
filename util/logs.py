"""Logging and progress: rank 0 speaks, the others keep to errors.

On a terminal progress is a bar; elsewhere it is a line of the log every half minute, and what is
logged also goes to a file beside the run's output.
"""

import logging
import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm
from tqdm.contrib import logging as tqdm_logging

T = TypeVar("T")

LOG_FILE = "log.txt"
# Off a terminal: seconds between two lines of one loop's progress.
PROGRESS_SECONDS = 30.0
_FORMAT = "%(asctime)s %(levelname).1s %(message)s"

logger = logging.getLogger(__name__)
# How a run ended, for the log file: people have it on the console already.
endings = logging.getLogger("lpd.endings")
endings.addHandler(logging.NullHandler())
endings.propagate = False


def is_main_process() -> bool:
    """Tell whether this is rank 0, as the launcher says."""
    return int(os.environ.get("RANK", "0")) == 0


def setup() -> None:
    """Send this project's log to standard error, from rank 0 only."""
    level = logging.INFO if is_main_process() else logging.ERROR
    logging.basicConfig(level=level, format=_FORMAT, datefmt="%H:%M:%S", force=True)
    logging.captureWarnings(True)
    endings.handlers = [one for one in endings.handlers if not isinstance(one, _LogFile)]


def keep(folder: str | Path) -> None:
    """Where standard error is no terminal, also log, with the date, to a folder's `log.txt`."""
    if sys.stderr.isatty() or not is_main_process():
        return
    handler = _LogFile(Path(folder) / LOG_FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%d %H:%M:%S"))
    for source in (logging.getLogger(), endings):
        source.addHandler(handler)


class _LogFile(logging.FileHandler):
    """A log file that ends where the disk is full: the run goes on and keeps its other log."""

    def handleError(self, record: logging.LogRecord) -> None:
        for source in (logging.getLogger(), endings):
            source.removeHandler(self)
        logger.warning("%s: cannot be written, the log goes on without it", self.baseFilename)


def progress(items: Iterable[T] | None = None, **options: Any) -> tqdm:
    """Draw a tqdm bar on rank 0; off a terminal log its state now and then."""
    options.setdefault("disable", not is_main_process())
    if sys.stderr.isatty():
        return tqdm(items, dynamic_ncols=True, mininterval=0.2, **options)
    layout = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
    options.setdefault("bar_format", layout)
    seconds = PROGRESS_SECONDS
    return tqdm(items, file=_LogLines(), mininterval=seconds, maxinterval=seconds, **options)


class _LogLines:
    """A text stream whose lines go to the log once, those of loops that have only begun not."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line and line != self._last and "[00:00<" not in line:
            logger.info("%s", line)
            self._last = line

    def flush(self) -> None:
        pass  # there is nothing


def logging_redirect_tqdm() -> AbstractContextManager[None]:
    """Write what is logged above the bar, on a terminal."""
    # Elsewhere progress is logged under tqdm's lock: a thread that had the log's and waited for
    # tqdm's to write above a bar would wait forever.
    return tqdm_logging.logging_redirect_tqdm() if sys.stderr.isatty() else nullcontext()
