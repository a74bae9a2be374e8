"""A Hub on 127.0.0.1 that speaks the part of its HTTP that `huggingface_hub` downloads with.

Large files are served, as by the real one, by a second server that knows nothing of users; tests
can make that one cut, reset or change what it sends.
"""

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 1000  # larger files are not in git


def etag(data: bytes) -> str:
    """What the Hub announces of a content: sha256 of a large one, git's hash of a small one."""
    if len(data) > LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)  # commits of branches and tags
    private: bool = False
    gated: bool = False

    def commit(self, files: Mapping[str, bytes]) -> str:
        """Add a commit of all `files` to `main`; returns its hash."""
        text = "".join((str(len(self.commits)), *sorted(files)))
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha] = dict(files)
        self.revisions["main"] = sha
        return sha


@dataclass
class Faults:
    """What goes wrong with contents."""

    cuts: list[int] = field(default_factory=list)  # bytes after which the next downloads end
    reset: bool = False  # cut as a broken line does, not as a server that closes
    changed: bool = False  # contents are not what was announced
    status: int = 0  # every request of files is answered with it
    gate: threading.Event | None = None  # a download that is cut stays open until this is set


class Hub:
    """Both servers, until `stop`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.contents: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.faults = Faults()
        self.downloads: list[Mapping[str, str]] = []  # headers of what was answered with a content
        self._servers = [_Server(("127.0.0.1", 0), kind) for kind in (HubHandler, ContentHandler)]
        for server in self._servers:
            server.hub = self
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.url, self.content_url = (
            f"http://127.0.0.1:{server.server_port}" for server in self._servers
        )

    def stop(self) -> None:
        """End the servers: nothing listens any more."""
        while self._servers:
            server = self._servers.pop()
            server.shutdown()
            server.server_close()

    def add(self, name: str, **files: bytes) -> Repository:
        """A repository with one commit; `__` stands for the dot in names of files."""
        repository = self.repositories.setdefault(name, Repository())
        repository.commit({file.replace("__", "."): data for file, data in files.items()})
        return repository

    def head(self, name: str) -> str:
        """The newest commit of a repository."""
        return self.repositories[name].revisions["main"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that end in the middle are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Tests look at `Hub.downloads`."""

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def begin(self, status: int, length: int = 0, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content_Length": str(length)}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send_content(self, data: bytes, **headers: str) -> None:
        """A content, or the range that is asked for, as the faults have it."""
        faults = self.hub.faults
        self.hub.downloads.append(self.headers)
        cut = faults.cuts.pop(0) if faults.cuts else None
        if faults.changed:
            data = data[:-1] + bytes([data[-1] ^ 1])
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.begin(206 if start else 200, len(data) - start, **headers)
        self.wfile.write(data[start:][:cut])
        if cut is not None:
            if faults.gate is not None:
                faults.gate.wait(30)
            self.close_connection = True
            if faults.reset:
                option = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
                self.connection.close()


class ContentHandler(_Handler):
    """Large files by their sha256, for whoever knows it."""

    def do_GET(self) -> None:
        self.send_content(self.hub.contents[self.path.strip("/")])


class HubHandler(_Handler):
    """Repositories."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        name, revision = r"/(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
        if found := re.fullmatch(rf"{name}/resolve/{revision}/(?P<file>.+)", path):
            self.resolve(**found.groupdict())
        elif found := re.fullmatch(rf"/api/models{name}(/revision/{revision})?", path):
            self.info(**found.groupdict("main"))
        else:
            self.begin(404)

    do_HEAD = do_GET

    def resolve(self, name: str, revision: str, file: str) -> None:
        repository, sha = self.find(name, revision)
        if repository is None:
            return
        if self.hub.faults.status:
            self.begin(self.hub.faults.status)
            return
        if repository.gated:
            self.begin(403 if self.is_user() else 401, X_Error_Code="GatedRepo")
            return
        data = repository.commits[sha][unquote(file)]
        tag = etag(data)
        if len(data) > LARGE:
            self.hub.contents[tag] = data
            linked = {"X_Linked_Etag": f'"{tag}"', "X_Linked_Size": str(len(data))}
            self.begin(302, X_Repo_Commit=sha, Location=f"{self.hub.content_url}/{tag}", **linked)
        elif self.command == "HEAD":
            self.begin(200, len(data), X_Repo_Commit=sha, ETag=f'"{tag}"')
        else:
            self.send_content(data, X_Repo_Commit=sha, ETag=f'"{tag}"')

    def info(self, name: str, revision: str) -> None:
        repository, sha = self.find(name, revision)
        if repository is not None:
            siblings = [{"rfilename": file} for file in repository.commits[sha]]
            body = json.dumps({"id": name, "sha": sha, "siblings": siblings}).encode()
            self.begin(200, len(body), Content_Type="application/json")
            self.wfile.write(body)

    def find(self, name: str, revision: str) -> tuple[Repository | None, str]:
        """A repository and the commit of a revision; None if it was answered that there is none."""
        repository, revision = self.hub.repositories.get(name), unquote(revision)
        if repository is None or (repository.private and not self.is_user()):
            self.begin(404 if self.is_user() else 401, X_Error_Code="RepoNotFound")
            return None, ""
        sha = repository.revisions.get(revision, revision)
        if sha not in repository.commits:
            self.begin(404, X_Error_Code="RevisionNotFound")
            return None, ""
        return repository, sha

    def is_user(self) -> bool:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") in self.hub.tokens
