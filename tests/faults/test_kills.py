"""Processes that are killed: what they leave behind is gone on with, to the last bit."""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from dataset.write_cache import INDEX_FILE
from tests.commands import succeed
from tests.faults.children import Child
from tests.faults.conftest import SHARD, Start, Whole, same_cache
from tests.integration.test_resume import same_training, wait_for, workers_of
from tests.integration.test_resume import start as launch
from training.checkpoint import LAST
from util.run_record import RECORD_FILE

pytestmark = pytest.mark.slow

SECONDS_TO_END = 60  # that the job of a killed process may take


def writing(folder: Path) -> set[tuple[str, int]]:
    """The temporary files of results in a folder, and when each was last written to."""
    found = set()
    for path in set(folder.glob(".*.part")) - {folder / f".{RECORD_FILE}.part"}:
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def killed(child: Child, output: Path, moment: float | None) -> bool:
    """Kill a run after `moment` seconds, or (None) in a write; False if it has ended before."""
    before, begin = writing(output), time.monotonic()
    if moment is None:
        child.wait_for(lambda: bool(writing(output) - before))
    else:
        child.wait_for(lambda: time.monotonic() >= begin + moment)
    # A file may have been finished just before.
    return child.kill() and (moment is not None or bool(writing(output) - before))


def survive(
    folder: Path,
    run: Callable[[Path], Child],
    right: Callable[[Path], bool],
    kills: tuple[int, int],
    longest: float,
) -> None:
    """Run, kill and run again, in a new folder whenever a run has made what is `right`.

    `kills` are how many at any moment, up to `longest` seconds after a start, and how many in a
    write.
    """
    at_random, in_writing = kills
    draws = random.Random(0)
    to_do = [False] * at_random + [True] * in_writing
    draws.shuffle(to_do)
    number = 0
    while to_do:
        output = folder / f"run-{number}"
        output.mkdir(parents=True)
        while not (output / INDEX_FILE).exists():  # a killed run may have finished a cache
            child = run(output)
            moment = None if to_do and to_do[-1] else draws.uniform(0, longest)
            if to_do and killed(child, output, moment):
                to_do.pop()
            elif child.code != -signal.SIGKILL:
                child.succeeds()
                break
        assert right(output)
        number += 1


def test_in_training_also_while_it_writes_a_checkpoint(
    trained: Whole, tmp_path: Path, start: Start, long: bool
) -> None:
    survive(
        tmp_path,
        lambda output: start("main_lpd", trained.flags(output, "--save_steps", 1)),
        partial(same_training, expected=trained.folder),
        (9, 4) if long else (2, 1),
        trained.seconds,
    )


def test_in_caching_also_while_it_writes_a_file(
    cached: Whole, tmp_path: Path, start: Start, long: bool
) -> None:
    survive(
        tmp_path,
        lambda output: start("main_cache", cached.flags(output), shard_images=SHARD),
        partial(same_cache, expected=cached.folder),
        (4, 3) if long else (2, 1),
        cached.seconds,
    )


@pytest.mark.parametrize("local_rank", [0, 1])
def test_one_of_two_processes_is_named_and_the_run_goes_on(
    trained: Whole, trained_by_two: Path, tmp_path: Path, long: bool, local_rank: int
) -> None:
    if local_rank == 0 and not long:
        pytest.skip("--long tries it")
    flags = trained.flags(tmp_path, *BY_TWO)
    run = launch(2, "main_lpd.py", *flags, cold=True)  # `worker` reads its first variables
    wait_for(lambda: (tmp_path / LAST).exists(), run)
    victim = worker(run, local_rank)
    os.kill(victim, signal.SIGKILL)
    _, said = run.communicate(timeout=SECONDS_TO_END)
    assert run.returncode != 0
    named = rf"\(local_rank: {local_rank}\)\s+exitcode\s*: -9 \(pid: {victim}\)"
    assert re.search(named, said), said
    assert "resumed from" in succeed("main_lpd.py", *flags, processes=2).stderr
    assert same_training(tmp_path, trained_by_two)


BY_TWO = ("--batch_size", 4, "--save_steps", 2)  # the same images a step as one process


@pytest.fixture(scope="module")
def trained_by_two(trained: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    succeed("main_lpd.py", *trained.flags(folder, *BY_TWO), processes=2)
    return folder


def worker(run: subprocess.Popen, local_rank: int) -> int:
    """The process of a launcher that has this rank."""
    for process in workers_of(run):
        variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        if f"LOCAL_RANK={local_rank}".encode() in variables:
            return process
    raise AssertionError(f"no process of rank {local_rank}")
