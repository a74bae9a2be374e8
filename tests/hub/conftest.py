import os

import pytest

from tests.hub.client import Client
from tests.hub.server import Hub


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture
def client(hub, tmp_path):
    """Commands that know this Hub, and start with an empty cache."""
    return Client(hub.url, tmp_path / "hf")


@pytest.fixture
def inside(client, monkeypatch):
    """Makes this process itself know the Hub: the library reads its environment only once."""
    for name in os.environ:
        if name.startswith("HF_"):
            monkeypatch.delenv(name)
    for name, value in client.constants().items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    return client
