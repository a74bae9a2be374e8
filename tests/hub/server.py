"""A Hub on 127.0.0.1 that speaks the part of its HTTP that `huggingface_hub` uses.

Large files are served, as by the real one, by a second server that knows nothing of users; tests
can make that one cut, reset or change what it sends.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.hub.handlers import LARGE, ContentHandler, HubHandler


@dataclass(frozen=True)
class Request:
    """A request that a server, `hub` or `content`, got; names of headers in lower case."""

    server: str
    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Repository:
    """Files of each commit, the commits of branches and tags, and who may see them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: Mapping[str, bytes], revision: str = "main") -> str:
        """Add a commit of all `files` to a branch; returns its hash."""
        text = "".join((str(len(self.commits)), *sorted(files)))
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha] = dict(files)
        self.revisions[revision] = sha
        return sha


@dataclass
class Faults:
    """What goes wrong with contents.

    Attributes:
        cuts: after how many bytes each of the next downloads ends, in their order.
        reset: cut as a broken line does, not as a server that closes.
        whole: ranges are not looked at.
        changed: contents are not what was announced.
        status: every request of files is answered with it, if not 0.
        gate: a download that is cut stays open until this is set, if given.
    """

    cuts: list[int] = field(default_factory=list)
    reset: bool = False
    whole: bool = False
    changed: bool = False
    status: int = 0
    gate: threading.Event | None = None


class Hub:
    """Both servers; leave it as a context to end them."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.contents: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.faults = Faults()
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._servers: list[ThreadingHTTPServer] = []

    def __enter__(self) -> Hub:
        for handler in (HubHandler, ContentHandler):
            server = _Server(("127.0.0.1", 0), handler)
            server.hub = self
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            self._servers.append(server)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the servers: nothing listens any more."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._servers.clear()

    @property
    def url(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def content_url(self) -> str:
        """Of the server of large files."""
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def add(self, name: str, **files: bytes) -> Repository:
        """A repository with one commit; `__` stands for the dot in names of files."""
        repository = self.repositories.setdefault(name, Repository())
        repository.commit({file.replace("__", "."): data for file, data in files.items()})
        return repository

    def note(self, request: BaseHTTPRequestHandler, server: str) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        with self._lock:
            self.requests.append(Request(server, request.command, request.path, headers))

    def downloads(self) -> list[Request]:
        """Requests for contents, large and small."""
        return [one for one in self.requests if one.method == "GET" and self._is_content(one)]

    def _is_content(self, request: Request) -> bool:
        if request.server == "content" or "/resolve/" not in request.path:
            return request.server == "content"
        name, _, rest = request.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        data = self.repositories[name].commits.get(revision, {}).get(file)
        return data is None or len(data) <= LARGE  # others are redirected

    def next_cut(self) -> int | None:
        """After how many bytes the download that begins is to end."""
        with self._lock:
            return self.faults.cuts.pop(0) if self.faults.cuts else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that end in the middle are part of the tests."""
