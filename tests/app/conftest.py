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
from tests.integration.conftest import world  # noqa: F401
from tests.integration.tiny_world import CLASSES, TinyWorld

if TYPE_CHECKING:
    from tests.app.browser import Visitor


@pytest.fixture(scope="session")
def studio(world: TinyWorld) -> Iterator[Studio]:  # noqa: F811
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
    packages: None,
    world: TinyWorld,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningApp]:
    """The page of the small model, for all tests."""
    with running_app(world, tmp_path_factory.mktemp("app") / "log.txt") as app:
        yield app
        # Whatever visitors do is told them, and is no bug.
        assert "Traceback" not in app.log.read_text()


@pytest.fixture
def visit(running: RunningApp, tmp_path: Path) -> Iterator[Callable[..., Visitor]]:
    """Lets a visitor come; what each sees in the end becomes a picture in `tmp_path`."""
    from tests.app.browser import visitor

    with ExitStack() as stack:

        def come(size: str = "1280,900") -> Visitor:
            picture = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
            picture.touch()
            return stack.enter_context(visitor(running.address, picture, size))

        yield come
