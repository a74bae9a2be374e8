"""A small random model to play with."""

from collections.abc import Iterator

import pytest
import torch

from app.studio import Studio
from evaluation.networks import load_networks
from tests.integration.conftest import world  # noqa: F401
from tests.integration.tiny_world import CLASSES, TinyWorld


@pytest.fixture(scope="session")
def studio(world: TinyWorld) -> Iterator[Studio]:  # noqa: F811
    """On one thread, as the program under test runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    networks = load_networks(world.checkpoint, world.tokenizer)
    yield Studio(*networks, [f"class {label}" for label in range(CLASSES)])
    torch.set_num_threads(threads)
