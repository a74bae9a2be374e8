"""Processes that are killed: what they leave behind is gone on with, to the last bit."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from dataset.write_cache import INDEX_FILE
from tests.commands import succeed
from tests.faults.children import Child
from tests.faults.conftest import SHARD, Fault, Start, Whole, same_cache
from tests.integration.test_resume import same_training, wait_for, workers_of
from tests.integration.test_resume import start as launch
from training.checkpoint import LAST
from util.run_record import RECORD_FILE

pytestmark = pytest.mark.slow

# What the job of a killed process may take to end.
SECONDS_TO_END = 60


@dataclass
class Kills:
    """Kills runs of a command until it has been done often enough.

    Attributes:
        at_random: how many are still to come at any moment.
        in_writing: how many are still to come while a file is being written.
        longest: seconds after its start at which a run is killed at the latest.
        draws: says when.
        runs: how many were finished meanwhile.
    """

    at_random: int
    in_writing: int
    longest: float
    draws: random.Random
    runs: int = 0

    def survive(
        self,
        folder: Path,
        run: Callable[[Path], Child],
        finished: Callable[[Path], bool],
        right: Callable[[Path], bool],
    ) -> None:
        """Run and kill and run again, in a new folder whenever a run has finished.

        Args:
            folder: of the runs' folders.
            run: starts a run in its folder.
            finished: whether a killed run has left nothing to do.
            right: whether a finished run has made what it should.
        """
        while self.at_random or self.in_writing:
            output = folder / f"run-{self.runs}"
            output.mkdir(parents=True)
            self._finish(output, run, finished)
            assert right(output)
            self.runs += 1

    def _finish(
        self, output: Path, run: Callable[[Path], Child], finished: Callable[[Path], bool]
    ) -> None:
        while self.at_random or self.in_writing:
            child = run(output)
            if not self._kill(child, output):
                child.succeeds()
                return
            if finished(output):
                return
        run(output).succeeds()

    def _kill(self, child: Child, output: Path) -> bool:
        """Kill a run at some moment; False if it has ended before."""
        before = writing(output)
        left = self.at_random + self.in_writing
        in_writing = self.draws.randrange(left) < self.in_writing
        if in_writing:
            child.wait_for(lambda: bool(writing(output) - before))
        else:
            moment = time.monotonic() + self.draws.uniform(0, self.longest)
            child.wait_for(lambda: time.monotonic() >= moment)
        if not child.kill():
            return False
        if not in_writing:
            self.at_random -= 1
        elif writing(output) - before:  # else the file was finished just before
            self.in_writing -= 1
        return True


def writing(folder: Path) -> set[tuple[str, int]]:
    """The temporary files of results in a folder, and when each was last written to."""
    found = set()
    for path in set(folder.glob(".*.part")) - {folder / f".{RECORD_FILE}.part"}:
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def test_training(trained: Whole, tmp_path: Path, start: Start, fault: Fault, long: bool) -> None:
    """SIGKILL in training, also while it writes a checkpoint."""
    at_random, in_writing = (9, 4) if long else (2, 1)
    kills = Kills(at_random, in_writing, trained.seconds, random.Random(1))
    kills.survive(
        tmp_path,
        run=lambda output: start("main_lpd", trained.flags(output, "--save_steps", 1)),
        finished=lambda output: False,
        right=lambda output: same_training(output, trained.folder),
    )
    fault.tries = at_random + in_writing
    fault.ended = f"{in_writing} in a write; resumed: same bits, same curves"


def test_caching(cached: Whole, tmp_path: Path, start: Start, fault: Fault, long: bool) -> None:
    """SIGKILL in caching, also while it writes a file."""
    at_random, in_writing = (4, 3) if long else (2, 1)
    kills = Kills(at_random, in_writing, cached.seconds, random.Random(2))
    kills.survive(
        tmp_path,
        run=lambda output: start("main_cache", cached.flags(output), shard_images=SHARD),
        finished=lambda output: (output / INDEX_FILE).exists(),
        right=lambda output: same_cache(output, cached.folder),
    )
    fault.tries = at_random + in_writing
    fault.ended = f"{in_writing} in a write; gone on with: same bytes"


@pytest.fixture(scope="module")
def trained_by_two(trained: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    succeed("main_lpd.py", *trained.flags(folder, *BY_TWO), processes=2)
    return folder


# The same images a step as one process.
BY_TWO = ("--batch_size", 4, "--save_steps", 2)


def test_one_of_two_processes(
    trained: Whole, trained_by_two: Path, tmp_path: Path, fault: Fault, long: bool
) -> None:
    """SIGKILL of one of two processes."""
    longest = 0.0
    for local_rank in (0, 1) if long else (1,):
        fault.tries += 1
        output = tmp_path / str(local_rank)
        flags = trained.flags(output, *BY_TWO)
        run = launch(2, "main_lpd.py", *flags, cold=True)  # `worker` reads its first variables
        wait_for(lambda output=output: (output / LAST).exists(), run)
        victim = worker(run, local_rank)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        _, said = run.communicate(timeout=SECONDS_TO_END)
        longest = max(longest, time.monotonic() - killed)
        assert run.returncode != 0
        named = rf"\(local_rank: {local_rank}\)\s+exitcode\s*: -9 \(pid: {victim}\)"
        assert re.search(named, said), said
        assert "resumed from" in succeed("main_lpd.py", *flags, processes=2).stderr
        assert same_training(output, trained_by_two)
    fault.ended = f"ended after {longest:.1f} s, naming the process; resumed: same bits"


def worker(run: subprocess.Popen, local_rank: int) -> int:
    """The process of a launcher that has this rank."""
    for process in workers_of(run):
        variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        if f"LOCAL_RANK={local_rank}".encode() in variables:
            return process
    raise AssertionError(f"no process of rank {local_rank}")
