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
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from util.errors import UserError, describe_os_error
from util.signals import ECHO_SECONDS, MARKER, SignalReceiver, describe_place

logger = logging.getLogger("lpd")

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


def supervise(
    line: Sequence[str],
    output_dir: Path,
    environment: Mapping[str, str],
    max_retry: int,
    batch_job: str | None = None,
) -> int:
    """Start a job (srun and the command) again where it was interrupted (no failure) or failed.

    A batch job, which has a number, is requeued by Slurm. Returns 0 when the job has finished, else
    the exit code of its last failure, `max_retry` in a row being tried again, or of the signal that
    stopped this command. Raises `UserError` where Slurm does not take the job.
    """

    def checkpoints() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in output_dir.glob("*.pth")}

    logs, marker, failures = output_dir / "logs", output_dir / MARKER, 0
    # Slurm itself signals all processes of a batch job.
    with Signals(forward=batch_job is None) as signals:
        for number in itertools.count(1):
            marker.unlink(missing_ok=True)  # an earlier run's must not speak for this one
            before = checkpoints()
            code, refused, cut_short = _start(line, logs, environment, signals)
            # A batch job has been taken already: what its step meets may pass.
            if refused and number == 1 and batch_job is None:
                raise UserError(f"srun: {refused}")
            failed, reason = not cut_short, f"exit code {code}"
            if marker.exists():
                (_, place_before), (name, place) = _read(logs / MARKER), _read(marker)
                marker.replace(logs / MARKER)
                failed = not place or place == place_before
                again = ", as the last time" if failed else ""
                reason = f"interrupted by {name} ({describe_place(place) or '?'}){again}"
            elif cut_short:
                reason = f"ended by Slurm ({cut_short})"
            elif code == 0:
                return 0
            # Slurm starts a preempted batch job again, but not one that its time limit ended.
            if signals.stop and not (batch_job and cut_short == "time limit"):
                logger.info("stopped; the same command goes on from the last checkpoint")
                return 128 + signals.stop
            if failed:
                failures = failures + 1 if checkpoints() == before else 1
                tried = f"{failures} ({max_retry} are tried again)"
                logger.error("failure %s: %s", tried, reason)
                if failures > max_retry:
                    return code or 1
                continue
            failures = 0
            logger.info("%s; going on", reason)
            if batch_job is not None:  # scontrol says itself, in the job's log, where it cannot
                subprocess.run(["scontrol", "requeue", batch_job], check=False)
                return code or 1


class Signals(SignalReceiver):
    """While entered, passes signals on to the job, or only takes note without `forward`.

    `stop` is the first that asked this command to end, 0 before. Such a signal goes on as SIGUSR1,
    which asks the job to save and end: at SIGTERM `srun` kills it at once. So does a second one.
    """

    def __init__(self, forward: bool) -> None:
        super().__init__((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1))
        self.stop, self._stop_at = 0, 0.0
        self.forward, self._receiver = forward, None

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
            if self.forward:
                # Not through the log: the signal may have come in the middle of a line of it.
                os.write(2, b"asked the job to save and end; the next signal kills it\n")
        elif time.monotonic() - self._stop_at > ECHO_SECONDS:
            self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: int) -> None:
        if self.forward and self._receiver is not None:
            self._receiver.send_signal(number)  # nothing, if it has ended


def _start(
    line: Sequence[str], logs: Path, environment: Mapping[str, str], signals: Signals
) -> tuple[int, str, str]:
    """Run the job once; copy what it prints to a new log file, and here if no batch job is.

    Returns the exit code as a shell reports it, why Slurm did not take the job, and what Slurm
    ended it for; both are empty in the ordinary case.
    """
    numbers = [int(path.stem.partition("-")[2]) for path in logs.glob("start-[0-9]*.log")]
    log = logs / f"start-{max(numbers, default=0) + 1:03d}.log"
    logger.info("log: %s", log)
    # A new session: the terminal's Ctrl-C is for this command, which passes it on in its own way.
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(line, env=environment, start_new_session=True, **pipes)
    signals.go_to(process)
    rest, started, refused, cut_short = b"", False, "", ""
    with log.open("wb", buffering=0) as file:
        sinks = [file, sys.stdout.buffer] if signals.forward else [file]
        while chunk := process.stdout.read1(2**16):
            for sink in list(sinks):
                try:
                    sink.write(chunk)
                    sink.flush()
                except OSError as error:  # a full disk must not end the job
                    sinks.remove(sink)
                    # Else Python writes what its buffer holds once more as it ends: exit code 120.
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sink.fileno())
                    logger.warning("no more output is copied: %s", describe_os_error(error))
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-4096:]
            for text in lines:
                started |= not text.startswith(b"srun: ")  # the job's own words
                if not (started or refused) and (match := REFUSED.match(text)):
                    refused = match[1].decode(errors="replace")
                if match := CUT_SHORT.search(text):
                    cut_short = (match[1] or match[2]).decode().lower()
        code = process.wait()
    return code if code >= 0 else 128 - code, refused, cut_short


def _read(marker: Path) -> tuple[str, dict[str, object]]:
    """Read the signal and how far the run was; `?` and nothing where the file is unreadable."""
    try:
        place = dict(json.loads(marker.read_text()))
    except (OSError, ValueError, TypeError):
        return "?", {}
    return str(place.pop("signal", "?")), place
