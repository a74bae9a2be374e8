"""Commands as they run on a machine that knows a Hub of the tests."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.commands import run_command, start_command


@dataclass(frozen=True)
class Client:
    """Where commands look for a Hub: HF_ENDPOINT and HF_HOME."""

    url: str
    home: Path

    @property
    def cache(self) -> Path:
        return self.home / "hub"

    def variables(self, **more: str) -> dict[str, str]:
        """The environment."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",  # the Hub of the tests does not speak it
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
            "NO_PROXY": "127.0.0.1",
            **more,
        }

    def constants(self) -> dict[str, object]:
        """The same in the library's own names."""
        return {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(self.cache),
            "HF_TOKEN_PATH": str(self.home / "token"),
            "HF_HUB_DISABLE_XET": True,
        }

    def download(self, *names: str, **more: str) -> subprocess.CompletedProcess:
        """The command that fetches what is published."""
        return run_command("util/download.py", *names, **self.variables(**more))

    def start(self, *names: str) -> subprocess.Popen:
        """A download that goes on beside the test."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return start_command("util/download.py", *names, variables=self.variables(), **pipes)

    def blobs(self) -> list[Path]:
        """All contents of the cache, those that are not whole included."""
        return sorted(self.cache.glob("models--*/blobs/*"))
