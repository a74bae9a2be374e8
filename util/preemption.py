"""Signals that ask a training run to stop, and what it leaves behind for its launcher.

Slurm warns with SIGUSR1, launchers and users with SIGTERM. The run finishes its step, saves, leaves
`MARKER` in its output folder and ends with `exit_code`: not 0, because it is not finished. A second
signal ends a process at once; files are written such that even this damages none.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TypeVar

from util.errors import blame
from util.files import write_json

MARKER = "interrupted.json"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# A scheduler signals every process of a job and torchrun passes the signal on: within this many
# seconds it is still the first one.
ECHO_SECONDS = 2.0


def exit_code(number: int) -> int:
    """What a process that signal `number` stopped exits with, as a shell would report it."""
    return 128 + number


def write_marker(folder: Path, number: int, epoch: int, step: int) -> None:
    """Tell the launcher that the run is saved and wants to go on.

    Args:
        folder: the run's output folder.
        number: of the signal.
        epoch: the epoch to go on with, from 0.
        step: steps of it that are done.
    """
    values = {"signal": signal.Signals(number).name, "epoch": epoch, "step": step}
    write_json(values, folder / MARKER)


def remove_marker(folder: Path) -> None:
    """A run starts: what an earlier one left behind no longer holds."""
    with blame("--output_dir"), suppress(NotADirectoryError):
        (folder / MARKER).unlink(missing_ok=True)


Receiver = TypeVar("Receiver", bound="SignalReceiver")


class SignalReceiver:
    """While entered, gets signals of `numbers` through `_receive`; the handlers before come back.

    Args:
        numbers: of the signals.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        self._handlers_before: dict[int, object] = {}

    def __enter__(self: Receiver) -> Receiver:
        for number in self._numbers:
            self._handlers_before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError


class StopSignals(SignalReceiver):
    """While entered, notes the first of `SIGNALS` instead of ending the process.

    Attributes:
        received: its number; 0 while there is none.
    """

    def __init__(self) -> None:
        super().__init__(SIGNALS)
        self.received = 0
        self._received_at = 0.0
        self._nothing_to_finish: Callable[[int], None] | None = None

    @contextmanager
    def leaving_at_once(self, last_words: Callable[[int], None]) -> Iterator[None]:
        """Let the first signal end the process inside the block: all it has done is saved.

        Args:
            last_words: called with the signal's number before the process ends.
        """
        self._nothing_to_finish = last_words
        try:
            if self.received:
                self._leave(self.received)
            yield
        finally:
            self._nothing_to_finish = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._received_at = number, now
            if self._nothing_to_finish is not None:
                self._leave(number)
        elif now - self._received_at > ECHO_SECONDS:
            os._exit(exit_code(number))

    def _leave(self, number: int) -> None:
        if self._nothing_to_finish is not None:
            self._nothing_to_finish(number)
        os._exit(exit_code(number))
