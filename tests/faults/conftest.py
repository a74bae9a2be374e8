"""The commands that faults are tried on, and what they work on."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.commands import results_in
from tests.faults.children import Child
from tests.integration.test_resume import flags as training_flags
from tests.integration.tiny_world import TinyWorld, build_world, tiny_tokenizer, write_images
from tokenizers.vq_model import save_tokenizer

Start = Callable[..., Child]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """Files that no test changes."""
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `Child`ren, whose output goes to files of their own; ends those that are left."""
    numbers = itertools.count()
    with ExitStack() as at_exit:

        def start(command: str, flags: list[object], **options: object) -> Child:
            child = Child(command, flags, tmp_path / f"said-{next(numbers)}", **options)
            at_exit.callback(child.kill)
            return child

        yield start


@dataclass(frozen=True)
class Whole:
    """What a command that nothing happened to has made, and the seconds that it took."""

    folder: Path
    flags: Callable[..., list[str]]  # of the same command into another folder, and more
    seconds: float


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What children are forked from has imported what it is to import."""
    Child("main_lpd", ["--help"], tmp_path_factory.mktemp("ready") / "said").succeeds()


@pytest.fixture(scope="session")
def trained(world: TinyWorld, ready: None, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A training run of `test_resume`'s length."""
    folder, flags = tmp_path_factory.mktemp("trained"), partial(training_flags, world)
    started = time.monotonic()
    Child("main_lpd", flags(folder), folder / "said").succeeds()
    return Whole(folder, flags, time.monotonic() - started)


SHARD, SHARDS = 8, 12


@pytest.fixture(scope="session")
def cached(ready: None, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The cache of a few random images, made in `SHARDS` shards of `SHARD`."""
    folder = tmp_path_factory.mktemp("cached")
    write_images(folder / "data", ("cat", "dog"), SHARD * SHARDS)
    save_tokenizer(folder / "vq.pt", tiny_tokenizer())

    def flags(output: Path, *more: object) -> list[str]:
        line = ["--data_path", folder / "data", "--vqgan_path", folder / "vq.pt", "--img_size", 16]
        line += ["--batch_size", SHARD // 2, "--num_workers", 0, "--device", "cpu"]
        return [*map(str, line), "--cached_path", str(output), *map(str, more)]

    started = time.monotonic()
    Child("main_cache", flags(folder / "cache"), folder / "said", SHARD).succeeds()
    return Whole(folder / "cache", flags, time.monotonic() - started)


def same_cache(found: Path, expected: Path) -> bool:
    """Whether two caches are finished and hold the same bytes."""
    return all((found / one.name).read_bytes() == one.read_bytes() for one in results_in(expected))
