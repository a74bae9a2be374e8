"""A small random model to play with."""

from collections.abc import Iterator

import pytest
import torch

from app.studio import Studio
from tests.integration.tiny_world import CLASSES, TinyWorld, build_world
from util.networks import load_networks


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
