"""What the servers of `tests.hub.server` answer."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from tests.hub.server import Hub, Repository

# Larger files are not in git.
LARGE = 1000

_INFO = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")
_RESOLVE = re.compile(r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_PREUPLOAD = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)")
_COMMIT = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)")
_LFS = re.compile(r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch")


def etag(data: bytes) -> str:
    """What the Hub announces of a content: sha256 of a large one, git's hash of a small one."""
    if len(data) > LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    role: str

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, format: str, *args: Any) -> None:
        """Tests look at `Hub.requests`."""

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
        faults, cut = self.hub.faults, self.hub.next_cut()
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
        self.hub.note(self, self.role)
        self.send_content(self.hub.contents[self.path.strip("/")])

    def do_PUT(self) -> None:
        self.hub.note(self, self.role)
        data = self.body()
        self.hub.contents[hashlib.sha256(data).hexdigest()] = data
        self.answer(200)


class HubHandler(_Handler):
    """Repositories: their files to read, and commits to make."""

    role = "hub"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.note(self, self.role)
        path = urlsplit(self.path).path
        if found := _RESOLVE.fullmatch(path):
            self.resolve(**found.groupdict())
        elif found := _TREE.fullmatch(path):
            self.tree(**found.groupdict())
        elif found := _INFO.fullmatch(path):
            self.info(found["name"], found["revision"] or "main")
        else:
            self.answer(404)

    def do_POST(self) -> None:
        self.hub.note(self, self.role)
        body, path = self.body(), urlsplit(self.path).path
        if not self.is_user():
            self.refuse(401, "", "Invalid username or password.")
        elif path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            there = name in self.hub.repositories
            if not there:
                self.hub.add(name)
            self.answer_json({"url": f"{self.hub.url}/{name}"}, 409 if there else 200)
        elif _PREUPLOAD.fullmatch(path):
            self.preupload(json.loads(body)["files"])
        elif _LFS.fullmatch(path):
            self.large_objects(json.loads(body)["objects"])
        elif found := _COMMIT.fullmatch(path):
            self.commit(found["name"], found["revision"], body)
        else:
            self.answer(404)

    # Reading

    def resolve(self, name: str, revision: str, file: str) -> None:
        repository, sha = self.find(name, revision)
        if repository is None:
            return
        if self.hub.faults.status:
            self.answer(self.hub.faults.status)
        elif repository.gated and not self.is_user():
            self.refuse(401, "GatedRepo", f"Access to model {name} is restricted.")
        elif repository.gated:
            self.refuse(403, "GatedRepo", f"Access to model {name} is restricted.")
        elif unquote(file) not in repository.commits[sha]:
            self.refuse(404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
        else:
            self.send_file(sha, repository.commits[sha][unquote(file)])

    def send_file(self, sha: str, data: bytes) -> None:
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

    def info(self, name: str, revision: str) -> None:
        repository, sha = self.find(name, revision)
        if repository is None:
            return
        siblings = [{"rfilename": file} for file in repository.commits[sha]]
        about = {"private": repository.private, "gated": repository.gated}
        self.answer_json({"id": name, "modelId": name, "sha": sha, "siblings": siblings, **about})

    def tree(self, name: str, revision: str) -> None:
        repository, sha = self.find(name, revision)
        if repository is None:
            return
        entries = []
        for file, data in repository.commits[sha].items():
            entry = {"type": "file", "path": file, "size": len(data), "oid": etag(data)[:40]}
            if len(data) > LARGE:
                entry["lfs"] = {"oid": etag(data), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        self.answer_json(entries)

    def find(self, name: str, revision: str) -> tuple[Repository | None, str]:
        """A repository and the commit of a revision; (None, '') after having refused."""
        repository, revision = self.hub.repositories.get(name), unquote(revision)
        if repository is None or (repository.private and not self.is_user()):
            self.refuse(404 if self.is_user() else 401, "RepoNotFound", "Repository not found")
            return None, ""
        sha = repository.revisions.get(revision, revision)
        if sha not in repository.commits:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None, ""
        return repository, sha

    def is_user(self) -> bool:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") in self.hub.tokens

    def refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        self.answer(status, X_Error_Code=code, X_Error_Message=message, **headers)

    # Writing

    def preupload(self, files: list[dict[str, Any]]) -> None:
        modes = ["lfs" if file["size"] > LARGE else "regular" for file in files]
        answers = [
            {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            for file, mode in zip(files, modes, strict=True)
        ]
        self.answer_json({"files": answers})

    def large_objects(self, objects: list[dict[str, Any]]) -> None:
        answers = []
        for item in objects:
            upload = {"upload": {"href": f"{self.hub.content_url}/{item['oid']}", "header": {}}}
            there = item["oid"] in self.hub.contents
            answers.append({**item, "actions": {} if there else upload})
        self.answer_json({"transfer": "basic", "objects": answers})

    def commit(self, name: str, revision: str, body: bytes) -> None:
        repository = self.hub.repositories[name]
        files = dict(repository.commits.get(repository.revisions.get(revision, ""), {}))
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.contents[value["oid"]]
        sha = repository.commit(files, revision)
        url = f"{self.hub.url}/{name}/commit/{sha}"
        self.answer_json({"commitUrl": url, "commitOid": sha})
