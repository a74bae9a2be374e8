"""Processes that are killed: what they leave behind is gone on with, to the last bit."""

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from dataset.write_cache import INDEX_FILE
from tests.faults.children import Child
from tests.faults.conftest import SHARD, Start, Whole, same_cache
from tests.integration.test_resume import same_training
from util.run_record import RECORD_FILE

pytestmark = pytest.mark.slow


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
