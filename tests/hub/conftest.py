import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands import run_command, start_command
from tests.hub.server import Hub


@dataclass(frozen=True)
class Client:
    """Where commands look for a Hub."""

    url: str
    home: Path  # HF_HOME

    @property
    def cache(self) -> Path:
        return self.home / "hub"

    def variables(self) -> dict[str, str]:
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.home), "NO_PROXY": "127.0.0.1"}
        # The Hub of the tests does not speak Xet.
        return {**own, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}

    def download(self, *names: str) -> subprocess.CompletedProcess:
        return run_command("util/download.py", *names, **self.variables())

    def start(self, *names: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return start_command("util/download.py", *names, variables=self.variables(), **pipes)

    def blobs(self) -> list[Path]:
        """All contents of the cache, those that are not whole included."""
        return sorted(self.cache.glob("models--*/blobs/*"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.stop()


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    """Commands that know this Hub, and start with an empty cache."""
    return Client(hub.url, tmp_path / "hf")


@pytest.fixture
def inside(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Makes this process itself know the Hub: the library reads its environment only once."""
    for name in os.environ:
        if name.startswith("HF_"):
            monkeypatch.delenv(name)
    constants = {
        "ENDPOINT": client.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": client.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(client.cache),
        "HF_TOKEN_PATH": str(client.home / "token"),
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    return client
