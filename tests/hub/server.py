"""A Hub on 127.0.0.1 that speaks the part of its HTTP that `huggingface_hub` uses.

Large files are served, as by the real one, by a second server that knows nothing of users; tests
can make that one cut, reset or change what it sends.
"""

from __future__ import annotations

import base64
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

# Larger files are not in git.
LARGE = 1000


def etag(data: bytes) -> str:
    """What the Hub announces of a content: sha256 of a large one, git's hash of a small one."""
    if len(data) > LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Request:
    """A request that a server, `hub` or `content`, got; names of headers in lower case."""

    server: str
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
    """What goes wrong with contents."""

    cuts: list[int] = field(default_factory=list)  # bytes after which the next downloads end
    reset: bool = False  # cut as a broken line does, not as a server that closes
    whole: bool = False  # ranges are not looked at
    changed: bool = False  # contents are not what was announced
    status: int = 0  # every request of files is answered with it
    gate: threading.Event | None = None  # a download that is cut stays open until this is set


class Hub:
    """Both servers; leave it as a context to end them."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.contents: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.faults = Faults()
        self.requests: list[Request] = []
        self.downloads: list[Request] = []  # those that were answered with a content
        self.lock = threading.Lock()
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

    def head(self, name: str) -> str:
        """The newest commit of a repository."""
        return self.repositories[name].revisions["main"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that end in the middle are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    role: str

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, format: str, *args: Any) -> None:
        """Tests look at `Hub.requests`."""

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        if parsed:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.request_of_client = Request(self.role, headers)
            self.hub.requests.append(self.request_of_client)
        return parsed

    def begin(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.begin(status, len(body), **headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def send_content(self, data: bytes, **headers: str) -> None:
        """A content, or the range that is asked for, as the faults have it."""
        faults = self.hub.faults
        self.hub.downloads.append(self.request_of_client)
        with self.hub.lock:
            cut = faults.cuts.pop(0) if faults.cuts else None
        if faults.changed:
            data = data[:-1] + bytes([data[-1] ^ 1])
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and not faults.whole else 0
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

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))


class ContentHandler(_Handler):
    """Large files by their sha256, for whoever knows it."""

    role = "content"

    def do_GET(self) -> None:
        self.send_content(self.hub.contents[self.path.strip("/")])


class _Refused(Exception):
    """Status, code and message of an answer."""


class HubHandler(_Handler):
    """Repositories: their files to read, and commits to make (of files that are sent with them)."""

    role = "hub"

    def do_GET(self) -> None:
        name, revision, rest = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)", r"(?P<file>.+)"
        self.route(
            {
                rf"/{name}/resolve/{revision}/{rest}": self.resolve,
                rf"/api/models/{name}(/revision/{revision})?": self.info,
            }
        )

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.sent = self.body()
        if not self.is_user():
            self.refuse(401, "", "Invalid username or password.")
            return
        models = r"/api/models/[^/]+/[^/]+"
        self.route(
            {
                "/api/validate-yaml": lambda: self.answer_json({"errors": [], "warnings": []}),
                "/api/repos/create": self.create,
                rf"{models}/preupload/[^/]+": self.preupload,
                r"/api/models/(?P<name>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)": self.commit,
            }
        )

    def route(self, routes: Mapping[str, Any]) -> None:
        for pattern, handle in routes.items():
            if found := re.fullmatch(pattern, urlsplit(self.path).path):
                try:
                    handle(**found.groupdict())
                except _Refused as refusal:
                    self.refuse(*refusal.args)
                return
        self.answer(404)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, X_Error_Code=code, X_Error_Message=message)

    # Reading

    def resolve(self, name: str, revision: str, file: str) -> None:
        repository, sha = self.find(name, revision)
        if self.hub.faults.status:
            raise _Refused(self.hub.faults.status, "", "")
        if repository.gated:
            status = 403 if self.is_user() else 401
            raise _Refused(status, "GatedRepo", f"Access to model {name} is restricted.")
        if unquote(file) not in repository.commits[sha]:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        data = repository.commits[sha][unquote(file)]
        about = {"X_Repo_Commit": sha, "ETag": f'"{etag(data)}"'}
        if len(data) > LARGE:
            self.hub.contents[etag(data)] = data
            about |= {
                "X_Linked_Etag": about.pop("ETag"),
                "X_Linked_Size": str(len(data)),
                "Location": f"{self.hub.content_url}/{etag(data)}",
            }
            self.answer(302, **about)
        elif self.command == "HEAD":
            self.begin(200, len(data), **about)
        else:
            self.send_content(data, **about)

    def info(self, name: str, revision: str | None) -> None:
        repository, sha = self.find(name, revision or "main")
        siblings = [{"rfilename": file} for file in repository.commits[sha]]
        about = {"private": repository.private, "gated": repository.gated}
        self.answer_json({"id": name, "modelId": name, "sha": sha, "siblings": siblings, **about})

    def find(self, name: str, revision: str) -> tuple[Repository, str]:
        """A repository and the commit of a revision."""
        repository, revision = self.hub.repositories.get(name), unquote(revision)
        if repository is None or (repository.private and not self.is_user()):
            status = 404 if self.is_user() else 401
            raise _Refused(status, "RepoNotFound", "Repository not found")
        sha = repository.revisions.get(revision, revision)
        if sha not in repository.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, sha

    def is_user(self) -> bool:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") in self.hub.tokens

    # Writing

    def create(self) -> None:
        asked = json.loads(self.sent)
        name = f"{asked['organization']}/{asked['name']}"
        there = name in self.hub.repositories
        if not there:
            self.hub.add(name)
        self.answer_json({"url": f"{self.hub.url}/{name}"}, 409 if there else 200)

    def preupload(self) -> None:
        mode = {"uploadMode": "regular", "shouldIgnore": False}
        files = json.loads(self.sent)["files"]
        self.answer_json({"files": [{"path": file["path"], **mode} for file in files]})

    def commit(self, name: str, revision: str) -> None:
        repository = self.hub.repositories[name]
        files = dict(repository.commits.get(repository.revisions.get(revision, ""), {}))
        for item in map(json.loads, self.sent.splitlines()):
            if item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
        sha = repository.commit(files, revision)
        url = f"{self.hub.url}/{name}/commit/{sha}"
        self.answer_json({"commitUrl": url, "commitOid": sha})
