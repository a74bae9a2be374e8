"""Keep a Slurm job going until it has finished, over time limits, preemptions and failures."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from util.errors import UserError, describe_os_error
from util.signals import ECHO_SECONDS, MARKER, SignalReceiver, describe_place

logger = logging.getLogger("lpd")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What Slurm says where it, and not the program, ended a job.
CUT_SHORT = re.compile(
    rb"CANCELLED AT \S+ DUE TO (TIME LIMIT|PREEMPTION|NODE FAILURE)|srun: error: (Node failure) on "
)
# What it says before a job starts that it does not take. (Of launches and tasks that failed it
# speaks in other words.)
REFUSED = re.compile(
    rb"srun: (?:fatal: |error: (?=Unable to (?:allocate|create)|Job submit|[Ii]nvalid )"
    rb"|(?=unrecognized option|invalid option|option '))(.*)"
)


@dataclass(frozen=True)
class Outcome:
    """How one start of the job ended.

    Attributes:
        code: its exit code, as a shell reports it.
        interrupted: where the run has saved after a signal; empty if it left no marker.
        progress: whether that is another place than the last time.
        cut_short: what Slurm ended it for; empty if it ended by itself.
        refused: why Slurm did not take the job; empty if it did.
    """

    code: int
    interrupted: str
    progress: bool
    cut_short: str
    refused: str

    @property
    def finished(self) -> bool:
        return self.code == 0 and not self.interrupted and not self.cut_short

    @property
    def failed(self) -> bool:
        """Whether neither a signal nor Slurm ended it, or a signal before it got any further."""
        return not self.progress if self.interrupted else not self.cut_short

    def __str__(self) -> str:
        if self.interrupted:
            again = "" if self.progress else ", as the last time"
            return f"interrupted by {self.interrupted}{again}"
        return f"ended by Slurm ({self.cut_short})" if self.cut_short else f"exit code {self.code}"


@dataclass(frozen=True)
class Supervisor:
    """Starts a job until it has finished.

    Attributes:
        line: the `srun` line.
        output_dir: where the run leaves its marker when it was interrupted.
        logs: folder of what each start prints.
        environment: variables of the job.
        max_retry: how many failures in a row are tried again.
        requeue: inside a batch job: asks Slurm for the next start. None: the next start is here.
    """

    line: Sequence[str]
    output_dir: Path
    logs: Path
    environment: Mapping[str, str]
    max_retry: int
    requeue: Callable[[], None] | None = None

    def run(self) -> int:
        """Start the job, again where it was interrupted (no failure) or failed.

        Returns:
            0 when it has finished, else what its last failure, or the signal that stopped this
            command, makes the exit code.

        Raises:
            UserError: Slurm does not take the job.
        """
        # Slurm itself signals all processes of a batch job.
        with Signals(forward=self.requeue is None) as signals:
            failures = 0
            for number in itertools.count(1):
                before = self._checkpoints()
                outcome = self._start(signals)
                # A batch job has been taken already: what its step meets may pass.
                if outcome.refused and number == 1 and self.requeue is None:
                    raise UserError(f"srun: {outcome.refused}")
                if outcome.finished:
                    return 0
                # Slurm starts a preempted batch job again, but not one that its time limit ended.
                if signals.stop and not (self.requeue and outcome.cut_short == "time limit"):
                    logger.info("stopped; the same command goes on from the last checkpoint")
                    return 128 + signals.stop
                if outcome.failed:
                    failures = failures + 1 if self._checkpoints() == before else 1
                    tried = f"{failures} ({self.max_retry} are tried again)"
                    logger.error("failure %s: %s", tried, outcome)
                    if failures > self.max_retry:
                        return outcome.code or 1
                else:
                    failures = 0
                    logger.info("%s; going on", outcome)
                    if self.requeue is not None:
                        self.requeue()
                        return outcome.code or 1

    def _start(self, signals: Signals) -> Outcome:
        """Run the job once; copy what it prints to a new log file, and here if it is ours."""
        # A marker of an earlier run must not speak for this one.
        (self.output_dir / MARKER).unlink(missing_ok=True)
        log = next_log(self.logs)
        logger.info("log: %s", log)
        process = subprocess.Popen(
            self.line,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # The terminal's Ctrl-C is for this command, which passes it on in its own way.
            start_new_session=True,
        )
        with signals.going_to(process), log.open("wb", buffering=0) as file:
            sinks = [file] if self.requeue else [file, sys.stdout.buffer]
            words = _SlurmsWords()
            _copy(process.stdout, sinks, words.read)
            code = process.wait()
        interrupted, progress = self._take_marker()
        return Outcome(
            code=code if code >= 0 else 128 - code,
            interrupted=interrupted,
            progress=progress,
            cut_short=words.cut_short,
            refused=words.refused,
        )

    def _checkpoints(self) -> dict[str, int]:
        """The run's checkpoints, and when each was written, in nanoseconds."""
        return {path.name: path.stat().st_mtime_ns for path in self.output_dir.glob("*.pth")}

    def _take_marker(self) -> tuple[str, bool]:
        """Where the run was interrupted, if it was, and whether that is another place than before.

        The marker is moved to the logs.
        """
        marker, last = self.output_dir / MARKER, self.logs / MARKER
        if not marker.exists():
            return "", False
        (_, before), (name, place) = _read(last), _read(marker)
        marker.replace(last)
        return f"{name} ({describe_place(place) or '?'})", bool(place) and place != before


class Signals(SignalReceiver):
    """While entered, passes signals on to the job.

    SIGUSR1 goes on as it is. Signals that end this command go on as SIGUSR1 too, which asks the job
    to save and end: at SIGTERM `srun` kills the job at once. So does a second one here.

    Args:
        forward: False only takes note.

    Attributes:
        stop: the signal that asked this command to end; 0 while there is none.
    """

    def __init__(self, forward: bool) -> None:
        super().__init__((*STOP_SIGNALS, signal.SIGUSR1))
        self.stop = 0
        self._forward = forward
        self._stop_at = 0.0
        self._receiver: subprocess.Popen | None = None

    @contextlib.contextmanager
    def going_to(self, process: subprocess.Popen) -> Iterator[None]:
        """Signals go to `process` inside the block, and one that came just before it, too."""
        self._receiver = process
        try:
            if self.stop:
                self._pass_on(signal.SIGUSR1)
            yield
        finally:
            self._receiver = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self._pass_on(signal.SIGUSR1)
        elif not self.stop:
            self.stop, self._stop_at = number, time.monotonic()
            self._pass_on(signal.SIGUSR1)
            if self._forward:
                # Not through the log: the signal may have come in the middle of a line of it.
                os.write(2, b"asked the job to save and end; the next signal kills it\n")
        elif time.monotonic() - self._stop_at > ECHO_SECONDS:
            self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: int) -> None:
        if self._forward and self._receiver is not None:
            self._receiver.send_signal(number)


def _read(marker: Path) -> tuple[str, dict[str, object]]:
    """The signal in a marker, and how far the run was; `?` and nothing where it is unreadable."""
    try:
        place = dict(json.loads(marker.read_text()))
    except (OSError, ValueError, TypeError):
        return "?", {}
    return str(place.pop("signal", "?")), place


def next_log(folder: Path) -> Path:
    """A file for what the next start prints: `start-001.log` and on; none is overwritten."""
    numbers = [int(path.stem.partition("-")[2]) for path in folder.glob("start-[0-9]*.log")]
    return folder / f"start-{max(numbers, default=0) + 1:03d}.log"


class _SlurmsWords:
    """What Slurm says of a job, between the lines that the job itself prints.

    Attributes:
        refused: why it does not take the job; empty if it did.
        cut_short: what it ended the job for; empty if it did not.
    """

    def __init__(self) -> None:
        self.refused = self.cut_short = ""
        self._started = False

    def read(self, line: bytes) -> None:
        """Take note of the next line."""
        self._started |= not line.startswith(b"srun: ")
        if not (self._started or self.refused) and (match := REFUSED.match(line)):
            self.refused = match[1].decode(errors="replace")
        if match := CUT_SHORT.search(line):
            self.cut_short = (match[1] or match[2]).decode().lower()


def _copy(source: BinaryIO, sinks: Sequence[BinaryIO], read_line: Callable[[bytes], None]) -> None:
    """Copy `source` to all sinks, and let its lines be read."""
    sinks, rest = list(sinks), b""
    while chunk := source.read1(2**16):
        for sink in list(sinks):
            try:
                sink.write(chunk)
                sink.flush()
            except OSError as error:  # a full disk must not end the job
                sinks.remove(sink)
                logger.warning("no more output is copied: %s", describe_os_error(error))
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[-4096:]
        for line in lines:
            read_line(line)
