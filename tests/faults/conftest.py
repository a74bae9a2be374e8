"""The table of faults that were tried, the commands, and what they work on."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import results_in
from tests.faults.children import Child
from tests.faults.study import Study, write_study
from tests.integration.test_resume import flags as training_flags
from tests.integration.tiny_world import TinyWorld, build_world, tiny_tokenizer
from tokenizers.vq_model import save_tokenizer

FAULT = "fault"
Start = Callable[..., Child]


@dataclass
class Fault:
    """A row of the table.

    Attributes:
        what: went wrong; the first line of the test's docstring.
        tries: how often.
        ended: how it ended each time, if the test passes.
    """

    what: str
    tries: int = 0
    ended: str = ""


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Fault:
    """The row of a test, to be filled in."""
    what = request.function.__doc__.splitlines()[0].rstrip(".")
    case = f": {request.node.callspec.id}" if hasattr(request.node, "callspec") else ""
    row = Fault(what + case)
    request.node.user_properties.append((FAULT, vars(row)))  # simple enough for xdist
    return row


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = []
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.getreports(outcome):
            # A module that is skipped whole reports its collection, which has none.
            properties = getattr(report, "user_properties", ())
            for row in (value for name, value in properties if name == FAULT):
                ended = {"passed": row["ended"], "failed": "FAILED"}.get(outcome)
                ended = ended or f"skipped: {report.longrepr[2]}"
                rows.append((row["what"], str(row["tries"]), ended))
    if not rows:
        return
    terminalreporter.section("faults that were tried")
    title = ("what", "tries", "how it ended")
    width = max(len(what) for what, *_ in [title, *rows])
    for what, tries, ended in [title, *rows]:
        terminalreporter.write_line(f"{what:{width}}  {tries:>5}  {ended}")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """Files that no test changes."""
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def study(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Files that no test changes either, of every kind."""
    return write_study(tmp_path_factory.mktemp("study"), world)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `Child`ren, whose output goes to files of their own; ends those that are left."""
    numbers = itertools.count()
    with ExitStack() as at_exit:

        def start(command: str, flags: list[object], **options: object) -> Child:
            said = tmp_path / f"said-{next(numbers)}"
            child = Child(command, list(map(str, flags)), said, **options)
            at_exit.callback(child.kill)
            return child

        yield start


@dataclass(frozen=True)
class Whole:
    """What a command that nothing happened to has made.

    Attributes:
        folder: its output.
        flags: of the same command into another folder, and more.
        seconds: that it took.
    """

    folder: Path
    flags: Callable[..., list[str]]
    seconds: float


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The process that children are forked from has imported what it is to import."""
    Child("main_lpd", ["--help"], tmp_path_factory.mktemp("ready") / "said").succeeds()


@pytest.fixture(scope="session")
def trained(world: TinyWorld, ready: None, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A training run of `test_resume`'s length."""
    folder = tmp_path_factory.mktemp("trained")

    def flags(output: Path, *more: object) -> list[str]:
        return training_flags(world, output, *more)

    started = time.monotonic()
    Child("main_lpd", flags(folder), folder / "said").succeeds()
    return Whole(folder, flags, time.monotonic() - started)


SHARD = 8
SHARDS = 12


@pytest.fixture(scope="session")
def cached(ready: None, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The cache of a few random images, made in `SHARDS` shards of `SHARD`."""
    folder = tmp_path_factory.mktemp("cached")
    write_images(folder / "data")
    save_tokenizer(folder / "vq.pt", tiny_tokenizer())

    def flags(output: Path, *more: object) -> list[str]:
        paths = ["--data_path", folder / "data", "--vqgan_path", folder / "vq.pt"]
        sizes = ["--img_size", 16, "--batch_size", SHARD // 2, "--num_workers", 0]
        line = [*paths, *sizes, "--device", "cpu", "--cached_path", output, *more]
        return list(map(str, line))

    whole = folder / "cache"
    started = time.monotonic()
    Child("main_cache", flags(whole), folder / "said", SHARD).succeeds()
    return Whole(whole, flags, time.monotonic() - started)


def write_images(folder: Path, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    """An image folder of random images, `SHARD` * `SHARDS` in all."""
    draws = np.random.default_rng(0)
    for number in range(SHARD * SHARDS):
        file = folder / classes[number % len(classes)] / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)


def same_cache(found: Path, expected: Path) -> bool:
    """Whether two caches are finished and hold the same bytes."""
    return all(
        (found / file.name).read_bytes() == file.read_bytes() for file in results_in(expected)
    )
