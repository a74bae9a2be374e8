"""A small random model to play with, the page of it, and visitors of the page."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from app.studio import Studio
from evaluation.networks import load_networks
from tests.app.server import RunningApp, running_app
from tests.apt import MissingProgramsError, require_programs
from tests.integration.tiny_world import CLASSES, TinyWorld, build_world

if TYPE_CHECKING:
    from tests.app.browser import Visitor


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """Files that no test changes."""
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def studio(world: TinyWorld) -> Iterator[Studio]:
    """On one thread, as the program under test runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    networks = load_networks(world.checkpoint, world.tokenizer)
    yield Studio(*networks, [f"class {label}" for label in range(CLASSES)])
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def packages() -> None:
    """Skips the test where there is no Gradio, or no browser and none can be installed."""
    for name in ("gradio", "selenium"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(
                f"{name} is not installed: pip install -r requirements-app.txt "
                "-r tests/app/requirements.txt"
            )
    try:
        require_programs(("chromium", "chromedriver"), ("chromium", "chromium-driver"))
    except MissingProgramsError as error:
        pytest.skip(f"no browser on this machine: {error}")


@pytest.fixture(scope="session")
def running(
    packages: None, world: TinyWorld, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningApp]:
    """The page of the small model, for all tests."""
    flags = ["--pretrained_ckpt", world.checkpoint, "--vqgan_path", world.tokenizer]
    log = tmp_path_factory.mktemp("app") / "log.txt"
    with running_app(log, *flags, "--device", "cpu") as app:
        yield app
        # Whatever visitors do is told them, and is no bug.
        assert "Traceback" not in log.read_text()


@pytest.fixture
def visit(running: RunningApp, tmp_path: Path) -> Iterator[Callable[..., Visitor]]:
    """Lets a visitor come; what each sees in the end becomes a picture in `tmp_path`."""
    from tests.app.browser import visitor

    with ExitStack() as stack:
        count = 0

        def come(*size: str) -> Visitor:
            nonlocal count
            count += 1
            return stack.enter_context(visitor(running.address, tmp_path / f"{count}.png", *size))

        yield come
