"""Signals that ask a run to stop, and what it leaves behind for its launcher.

Slurm warns with SIGUSR1, launchers with SIGTERM, a terminal with SIGINT. The run saves, leaves
`MARKER` and exits with 128 + the signal. A second signal ends a process at once; files are written
such that even this damages none.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from util.errors import describe_os_error
from util.files import write_json
from util.logs import is_main_process

logger = logging.getLogger(__name__)

MARKER = "interrupted.json"
# Where a launcher looks for the marker, if not in the run's output folder: the path of the file.
MARKER_VARIABLE = "INTERRUPTED_FILE"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# A scheduler signals every process of a job and torchrun passes the signal on: within this many
# seconds it is still the first one.
ECHO_SECONDS = 2.0


def leave_marker(folder: Path, number: int, **place: int) -> None:
    """Tell the launcher, on rank 0, that signal `number` ended a run, and at which `place`."""
    if is_main_process():
        name = signal.Signals(number).name
        logger.warning("stopped by %s (%s); all is saved", name, describe_place(place))
        write_json({"signal": name, **place}, _marker_file(folder))


def describe_place(place: Mapping[str, object]) -> str:
    """Say where a run was interrupted, for people."""
    return ", ".join(f"{name} {value}" for name, value in place.items())


def remove_marker(folder: Path) -> None:
    """Delete what an earlier run left in this output folder."""
    _marker_file(folder).unlink(missing_ok=True)


def _marker_file(folder: Path) -> Path:
    return Path(os.environ.get(MARKER_VARIABLE, folder / MARKER))


class SignalReceiver(ExitStack):
    """While entered, gets signals of `numbers` through `_receive`; then the old handlers do."""

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__()
        self._numbers = numbers

    def __enter__(self) -> "SignalReceiver":
        for number in self._numbers:
            self.callback(signal.signal, number, signal.signal(number, self._receive))
        return super().__enter__()


class StopSignals(SignalReceiver):
    """While entered, notes the first of `SIGNALS` instead of ending the process; a second ends it.

    A thread is told of them, too: Python calls no handler while the main thread is inside a library
    (a long step, a wait for other processes), and counts two signals in that time as one.
    """

    def __init__(self) -> None:
        super().__init__(SIGNALS)
        self.received = 0  # the first one's number
        self.locks = ExitStack()  # closed at the end, and before the first signal ends the process
        self._last_words: Callable[[int], None] | None = None
        self._leaving = threading.RLock()

    def __enter__(self) -> "StopSignals":
        super().__enter__()
        self._told, tell = os.pipe()
        os.set_blocking(tell, False)
        listener = threading.Thread(target=self._listen, daemon=True)
        listener.start()
        # What is registered last is undone first.
        self.callback(self.locks.close)
        for descriptor in (self._told, tell):
            self.callback(os.close, descriptor)
        self.callback(listener.join)
        self.callback(os.write, tell, b"\0")
        self.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(tell, warn_on_full_buffer=False))
        return self

    @contextmanager
    def leaving_at_once(self, last_words: Callable[[int], None]) -> Iterator[None]:
        """Let the first signal end the process inside the block, after `last_words` of its number.

        All that the process has done is saved; any thread may say the words.
        """
        self._last_words = last_words
        try:
            if self.received:
                self._leave(self.received)
            yield
        finally:
            with self._leaving:
                self._last_words = None

    def _listen(self) -> None:
        """Act on every signal as soon as it arrives; 0 ends this."""
        first, since = 0, 0.0
        while number := os.read(self._told, 1)[0]:
            if number not in self._numbers:
                continue
            # Two of Ctrl-C are two, however soon; only torchrun would pass the first on.
            typed = first == number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ
            if not first:
                first, since = number, time.monotonic()
                self._leave(number)
            elif typed or time.monotonic() - since > ECHO_SECONDS:
                os._exit(128 + number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            return
        self.received = number
        # Not waited for: the thread that has it may wait for what this one holds, such as the log.
        if self._leaving.acquire(blocking=False):
            self._leave(number)
            self._leaving.release()
        if number == signal.SIGINT and self._last_words is None and is_main_process():
            # Not through the log: the signal may have come in the middle of a line of it.
            os.write(2, b"saving and ending; Ctrl-C again ends at once\n")

    def _leave(self, number: int) -> None:
        with self._leaving:  # one thread does
            if self._last_words is None:
                return
            try:
                with self.locks:
                    self._last_words(number)
            except OSError as error:
                logger.error("no marker is left: %s", describe_os_error(error))
            finally:
                os._exit(128 + number)
