"""Keep a Slurm job going until it has finished, over time limits, preemptions and failures."""

import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

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
    """How one start of the job ended."""

    code: int  # as a shell reports it
    interrupted: str  # where the run has saved after a signal; empty if it left no marker
    progress: bool  # whether that is another place than the last time
    cut_short: str  # what Slurm ended it for; empty if it ended by itself
    refused: str  # why Slurm did not take the job; empty if it did

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
    """Starts a job until it has finished."""

    line: Sequence[str]  # srun and the command
    output_dir: Path  # where an interrupted run leaves its marker; logs go to logs/ in it
    environment: Mapping[str, str]
    max_retry: int  # failures in a row that are tried again
    requeue: Callable[[], Any] | None = None  # in a batch job: asks Slurm for the next start

    def run(self) -> int:
        """Start the job, again where it was interrupted (no failure) or failed.

        Returns 0 when it has finished, else the exit code of its last failure or of the signal that
        stopped this command. Raises `UserError` where Slurm does not take the job.
        """
        failures = 0
        # Slurm itself signals all processes of a batch job.
        with Signals(forward=self.requeue is None) as signals:
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
                    continue
                failures = 0
                logger.info("%s; going on", outcome)
                if self.requeue is not None:
                    self.requeue()
                    return outcome.code or 1

    def _start(self, signals: "Signals") -> Outcome:
        """Run the job once; copy what it prints to a new log file, and here if it is ours."""
        logs, marker = self.output_dir / "logs", self.output_dir / MARKER
        marker.unlink(missing_ok=True)  # an earlier run's must not speak for this one
        numbers = [int(path.stem.partition("-")[2]) for path in logs.glob("start-[0-9]*.log")]
        log = logs / f"start-{max(numbers, default=0) + 1:03d}.log"
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
        signals.go_to(process)
        with log.open("wb", buffering=0) as file:
            sinks = [file] if self.requeue else [file, sys.stdout.buffer]
            refused, cut_short = _copy(process.stdout, sinks)
            code = process.wait()
        interrupted, progress = "", False
        if marker.exists():
            (_, before), (name, place) = _read(logs / MARKER), _read(marker)
            marker.replace(logs / MARKER)
            interrupted = f"{name} ({describe_place(place) or '?'})"
            progress = bool(place) and place != before
        return Outcome(code if code >= 0 else 128 - code, interrupted, progress, cut_short, refused)

    def _checkpoints(self) -> dict[str, int]:
        """The run's checkpoints, and when each was written, in nanoseconds."""
        return {path.name: path.stat().st_mtime_ns for path in self.output_dir.glob("*.pth")}


class Signals(SignalReceiver):
    """While entered, passes signals on to the job, or only takes note without `forward`.

    `stop` is the first that asked this command to end, 0 before. Such a signal goes on as SIGUSR1,
    which asks the job to save and end: at SIGTERM `srun` kills it at once. So does a second one.
    """

    def __init__(self, forward: bool) -> None:
        super().__init__((*STOP_SIGNALS, signal.SIGUSR1))
        self.stop, self._stop_at = 0, 0.0
        self._forward, self._receiver = forward, None

    def go_to(self, process: subprocess.Popen) -> None:
        """Pass on to this process from now on, and a signal that came just before it, too."""
        self._receiver = process
        if self.stop:
            self._pass_on(signal.SIGUSR1)

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
            self._receiver.send_signal(number)  # nothing, if it has ended


def _read(marker: Path) -> tuple[str, dict[str, object]]:
    """The signal in a marker, and how far the run was; `?` and nothing where it is unreadable."""
    try:
        place = dict(json.loads(marker.read_text()))
    except (OSError, ValueError, TypeError):
        return "?", {}
    return str(place.pop("signal", "?")), place


def _copy(source: BinaryIO, sinks: Sequence[BinaryIO]) -> tuple[str, str]:
    """Copy `source` to all sinks; why Slurm says it does not take the job, what it ended it for."""
    sinks, rest, started, refused, cut_short = list(sinks), b"", False, "", ""
    while chunk := source.read1(2**16):
        for sink in list(sinks):
            try:
                sink.write(chunk)
                sink.flush()
            except OSError as error:  # a full disk must not end the job
                sinks.remove(sink)
                # Else Python writes what the buffer holds once more as it ends, and exits with 120.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sink.fileno())
                logger.warning("no more output is copied: %s", describe_os_error(error))
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[-4096:]
        for line in lines:
            started |= not line.startswith(b"srun: ")  # the job's own words
            if not (started or refused) and (match := REFUSED.match(line)):
                refused = match[1].decode(errors="replace")
            if match := CUT_SHORT.search(line):
                cut_short = (match[1] or match[2]).decode().lower()
    return refused, cut_short
