"""Files of Hugging Face repositories: from the local cache, else downloaded, whole and checked.

The cache is the one that all of `huggingface_hub` shares. What this adds to the library: a download
goes on where a killed process left it, no file is used before its hash is the announced one, and
what is in the cache is used without asking the network.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, are_progress_bars_disabled, build_hf_headers
from tqdm import tqdm

from util import logs
from util.errors import describe_os_error
from util.files import replacing

logger = logging.getLogger(__name__)

# What the Hub announces: the sha256 of a large file, or git's hash of a small one.
HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_BLOCK = 2**22
# How often a reset connection is tried again while nothing arrives.
_TRIES = 5


@dataclass(frozen=True)
class RemoteFile:
    """One file of a commit.

    Attributes:
        repository, commit, name: where it is.
        etag: its announced hash (see `file_hash`), by which the cache stores it.
        size: bytes; None if it was not announced.
    """

    repository: str
    commit: str
    name: str
    etag: str
    size: int | None


def fill(file: RemoteFile, folder: Path, token: str | bool | None, renew: bool) -> None:
    """Have the content of a file in the cache; one process downloads, others wait for it.

    Args:
        file: what to download.
        folder: of its repository in the cache.
        token: see `hub.download.Access`.
        renew: hash what is there, even if that was done before.

    Raises:
        ValueError: not the announced content, or it cannot be written.
        HTTPError: of `huggingface_hub`; what has arrived stays for the next try.
    """
    blob = folder / "blobs" / file.etag
    part = blob.with_name(f"{blob.name}.incomplete")
    # The lock that `huggingface_hub` takes for this content.
    lock = folder.parent / ".locks" / folder.name / f"{file.etag}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        blob.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if renew:
                _record(file.etag, folder).unlink(missing_ok=True)
            if not (blob.is_file() and _check(blob, file.etag, folder)):
                _require_space(part, file.size)
                _download(file, part, token)
                _finish(file, part, blob)
                _remember(blob, file.etag, folder)
    except OSError as error:
        if isinstance(error, HTTPError):
            raise
        if error.errno in (errno.ENOSPC, None):
            # A full disk is worse than a download from the start; None is a wrong size.
            part.unlink(missing_ok=True)
        raise ValueError(
            f"{file.name} cannot be kept in the cache {folder.parent} "
            f"({' '.join(describe_os_error(error).split())}), expected room and the right to "
            "write there, or another cache (HF_HOME)"
        ) from error


def file_hash(path: Path, etag: str) -> str:
    """The hash of a file, hexadecimal, of the kind that `etag` is: sha256, or git's of a blob."""
    if len(etag) == 64:
        return sha256_of(path)
    header = b"blob %d\0" % path.stat().st_size
    return _digest(path, hashlib.sha1(header, usedforsecurity=False))


def sha256_of(path: Path) -> str:
    """The sha256 of a file, hexadecimal, as `sha256sum` prints it.

    Raises:
        OSError: it cannot be read.
    """
    return _digest(path, hashlib.sha256())


def _digest(path: Path, digest: hashlib._Hash) -> str:
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        logs.progress(total=size, unit="B", unit_scale=True, desc="check", delay=1) as bar,
    ):
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def is_intact(path: Path, folder: Path) -> bool:
    """Whether a file of a snapshot is what the Hub announced when it was downloaded.

    Args:
        path: the file.
        folder: of its repository in the cache.
    """
    # A snapshot links to contents by their hash; where links do not work, copies cannot be told.
    if not path.is_symlink():
        return True
    etag = path.readlink().name
    if not HASH.fullmatch(etag) or _check(path, etag, folder):
        return True
    logger.warning("%s is damaged: its hash is not %s", path, etag)
    return False


def _require_space(part: Path, size: int | None) -> None:
    there = part.stat().st_size if part.exists() else 0
    free, needed = shutil.disk_usage(part.parent).free, (size or 0) - there
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free / 1e6:.1f} MB free of the {needed / 1e6:.1f} MB needed")


def _download(file: RemoteFile, part: Path, token: str | bool | None) -> None:
    """Let `part` become the whole file, from where it stands; it stays if that fails."""
    bar = None if sys.stderr.isatty() else partial(_bar_for_logs, are_progress_bars_disabled())
    if part.exists() and (file.size is None or part.stat().st_size > file.size):
        part.unlink()
    tries = 0
    while True:
        with part.open("ab") as output:
            start = output.tell()
            if start:
                logger.warning("%s: going on after %.1f MB", file.name, start / 1e6)
            try:
                http_get(
                    hf_hub_url(file.repository, file.name, revision=file.commit),
                    output,
                    resume_size=start,
                    headers=build_hf_headers(token=token),
                    expected_size=file.size,
                    displayed_filename=file.name,
                    tqdm_class=bar,
                )
                return
            except HfHubHTTPError:
                raise
            except HTTPError as error:
                # After all other breaks the library has tried again by itself.
                tries = 0 if output.tell() > start else tries + 1
                if type(error).__name__ != "ReadError" or tries > _TRIES:
                    raise


def _bar_for_logs(hidden: bool, **options: Any) -> tqdm:
    """Off a terminal, where the library shows nothing; on any process: one of them downloads."""
    if logs.is_main_process():
        return logs.progress(disable=hidden, **options)
    return tqdm(disable=hidden, mininterval=logs.PROGRESS_SECONDS, **options)


def _finish(file: RemoteFile, part: Path, blob: Path) -> None:
    """Give a download its name if it is what was announced; else delete it."""
    found = file_hash(part, file.etag)
    if found != file.etag:
        part.unlink()
        raise ValueError(
            f"{file.name} arrived with hash {found[:12]}, expected {file.etag[:12]} as "
            f"{constants.ENDPOINT} announces; it was deleted: try again, and if it stays so, "
            "something on the way changes files"
        )
    with part.open("rb+") as finished:
        os.fsync(finished.fileno())
    part.replace(blob)


def _check(path: Path, etag: str, folder: Path) -> bool:
    """Whether a file has a hash; remembered until the file changes."""
    with suppress(OSError):
        if _record(etag, folder).read_text() == _state(path):
            return True
    if file_hash(path, etag) != etag:
        return False
    _remember(path, etag, folder)
    return True


def _remember(path: Path, etag: str, folder: Path) -> None:
    record = _record(etag, folder)
    with suppress(OSError):  # a cache that others keep: checked every time
        record.parent.mkdir(exist_ok=True)
        with replacing(record) as temporary:
            temporary.write_text(_state(path))


def _record(etag: str, folder: Path) -> Path:
    return folder / ".checked" / etag


def _state(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}\n"


# Names of files in a repository -> those that are wanted; raises ValueError if they are not there.
Choose = Callable[[Sequence[str]], list[str]]

# The libraries' line for every request is for who debugs them.
for _name in ("httpx", "httpx2"):
    logging.getLogger(_name).setLevel(logging.WARNING)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[\w.+-]+(/[\w.+-]+)*")


@dataclass(frozen=True)
class Access:
    """How repositories are reached.

    The defaults are the library's, which HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN set.

    Attributes:
        cache: folder of the cache.
        token: that identifies the user; False for none, None for the one of the machine.
        offline: use the cache only.
        renew: ask for the newest commit of a branch, and check the cache's contents anew.
    """

    cache: Path | str | None = None
    token: str | bool | None = None
    offline: bool = False
    renew: bool = False

    @property
    def cache_folder(self) -> Path:
        return Path(self.cache or constants.HF_HUB_CACHE).expanduser().resolve()

    def repository_folder(self, repository: str) -> Path:
        """Where the cache keeps a repository."""
        return self.cache_folder / repo_folder_name(repo_id=repository, repo_type="model")


# What the environment says.
DEFAULT_ACCESS = Access()


def fetch(
    repository: str, choose: Choose, revision: str = "main", access: Access = DEFAULT_ACCESS
) -> list[Path]:
    """Files of one commit, in the cache: those that it has, else those that the Hub has.

    A branch that is in the cache stays at the commit that it had when it was downloaded.

    Args:
        repository: `user/name`.
        choose: picks among the names in the repository.
        revision: branch, tag or commit.
        access: how to reach the repository.

    Returns:
        Paths `.../snapshots/<commit>/<name>`, as `choose` ordered them.

    Raises:
        ValueError: not there, not allowed, unreachable, broken off or not what the Hub announces;
            says what to do about it.
    """
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ValueError(f"found revision {revision!r}, expected a branch, a tag or a commit")
    folder, damaged = access.repository_folder(repository), False
    if not access.renew:
        cached = find_cached(repository, choose, revision, access)
        damaged = not all(is_intact(path, folder) for path in cached)
        if cached and not damaged:
            return cached
    if access.offline or constants.is_offline_mode():
        state = "damaged" if damaged else "not"
        raise ValueError(
            f"{repository} at {revision} is {state} in the cache {access.cache_folder}, expected "
            "it there because downloads are off (HF_HUB_OFFLINE): python util/download.py fetches "
            "it where there is a network"
        )
    with _explained(repository, revision):
        commit, names = _list(repository, revision, access)
        files = [_ask(repository, commit, name, access) for name in choose(names)]
        for file in files:
            fill(file, folder, access.token, access.renew)
        paths = [_link(file, access) for file in files]
    _remember_revision(folder, revision, commit)
    return paths


def find_cached(
    repository: str, choose: Choose, revision: str = "main", access: Access = DEFAULT_ACCESS
) -> list[Path]:
    """What `fetch` finds without asking anyone; empty if something is missing."""
    folder = access.repository_folder(repository)
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    paths = {
        path.relative_to(snapshot).as_posix(): path
        for path in snapshot.rglob("*")
        if path.is_file()
    }
    try:
        return [paths[name] for name in choose(sorted(paths))]
    except ValueError:
        return []


def commit_of(path: str | Path) -> str | None:
    """The commit that a file in a cache belongs to; None for any other file."""
    for folder, name in itertools.pairwise(Path(path).parts):
        if folder == "snapshots" and _COMMIT.fullmatch(name):
            return name
    return None


def _list(repository: str, revision: str, access: Access) -> tuple[str, list[str]]:
    """The commit of a revision and the names of its files."""
    info = HfApi(token=access.token).model_info(
        repository, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    if not _COMMIT.fullmatch(info.sha or ""):
        raise TypeError(f"{info.sha!r} is no commit")
    return info.sha, [sibling.rfilename for sibling in info.siblings or ()]


def _ask(repository: str, commit: str, name: str, access: Access) -> RemoteFile:
    """What the Hub announces of a file."""
    found = get_hf_file_metadata(hf_hub_url(repository, name, revision=commit), access.token)
    if not HASH.fullmatch(found.etag or ""):
        raise TypeError(f"{found.etag!r} is no hash of {name}")
    return RemoteFile(repository, commit, name, found.etag, found.size)


def _link(file: RemoteFile, access: Access) -> Path:
    """Give a content that the cache has the name that it has in the repository."""
    return Path(
        hf_hub_download(
            file.repository,
            file.name,
            revision=file.commit,
            cache_dir=access.cache_folder,
            token=access.token,
        )
    )


def _remember_revision(folder: Path, revision: str, commit: str) -> None:
    """Note, as the library does, which commit a branch or tag is."""
    if revision != commit:
        reference = folder / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        # Processes that waited for the same download do this at the same time.
        temporary = reference.with_name(f"{reference.name}.{uuid.uuid4().hex}.tmp")
        temporary.write_text(commit)
        temporary.replace(reference)


@contextmanager
def _explained(repository: str, revision: str) -> Iterator[None]:
    """Turn what goes wrong between here and the Hub into a `ValueError` that says what to do."""
    where = f"{repository} at {constants.ENDPOINT}"
    try:
        yield
    except GatedRepoError as error:
        raise ValueError(
            f"{where} is gated (HTTP {error.response.status_code}), expected that you were given "
            "access: ask for it on its page, then use `hf auth login` or HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(
            f"{where} has no revision {revision!r}, expected a branch, a tag or a commit of it"
        ) from error
    except HfHubHTTPError as error:
        raise ValueError(_refusal(error.response.status_code, where)) from error
    except (HTTPError, LocalEntryNotFoundError) as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
        raise ValueError(
            f"{where} cannot be reached, or broke off ({_one_line(cause or error)}), expected a "
            "network: the same command goes on where it stopped; for nodes without a network use "
            "python util/download.py beforehand"
        ) from error
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(
            f"{where} does not answer as a Hub does ({_one_line(error)}), expected one there "
            "(HF_ENDPOINT)"
        ) from error


def _refusal(status: int, where: str) -> str:
    """What to do about an answer of HTTP."""
    if status == 401:
        return (
            f"{where} is private or does not exist (HTTP 401), expected the token of somebody who "
            "may read it: use `hf auth login` or HF_TOKEN"
        )
    if status == 403:
        return f"{where} may not be read with this token (HTTP 403), expected one that may"
    if status == 404:
        return f"{where} does not exist (HTTP 404), expected a repository there"
    return f"{where} answered with HTTP {status}, expected the files: try again later"


def _one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())
