"""Files of Hugging Face repositories: from the local cache, else downloaded, whole and checked.

The cache is the one of `huggingface_hub`, whose own download begins anew after a kill, compares no
hash and trusts `flock`, which lies on some cluster file systems: here it only links names to files.
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
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import huggingface_hub as hf
from huggingface_hub import constants, errors, utils
from tqdm import tqdm

from util import logs
from util.errors import describe_os_error
from util.files import open_file, replacing
from util.folder_lock import folder_lock

# Names of files in a repository -> those that are wanted; raises ValueError if they are not there.
Choose = Callable[[Sequence[str]], list[str]]

# The libraries' line for every request is for who debugs them.
for _name in ("httpx", "httpx2"):
    logging.getLogger(_name).setLevel(logging.WARNING)
logger = logging.getLogger(__name__)

_HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[\w.+-]+(/[\w.+-]+)*")
_BLOCK = 2**22
# How often a broken connection is tried again while nothing arrives.
_TRIES = 5


@dataclass(frozen=True)
class Access:
    """How repositories are reached; the defaults are the library's, which HF_* variables set."""

    cache: Path | str | None = None  # its folder
    token: str | bool | None = None  # of the user; False for none, None for the machine's
    offline: bool = False  # use the cache only
    renew: bool = False  # ask for a branch's newest commit, compare the cache's hashes anew

    @property
    def cache_folder(self) -> Path:
        return Path(self.cache or constants.HF_HUB_CACHE).expanduser().resolve()

    def repository_folder(self, repository: str) -> Path:
        """Where the cache keeps a repository."""
        return self.cache_folder / "--".join(("models", *repository.split("/")))


DEFAULT_ACCESS = Access()


def fetch(
    repository: str, choose: Choose, revision: str = "main", access: Access = DEFAULT_ACCESS
) -> list[Path]:
    """Return files of one commit, `.../snapshots/<commit>/<name>`, from the cache or downloaded.

    A revision (branch, tag, commit) stays at the commit that it was downloaded from. Of several
    processes one downloads, the others wait for it. A `ValueError` says what to do otherwise.
    """
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ValueError(f"found revision {revision!r}, expected a branch, a tag or a commit")
    wanted = repository, choose, revision, access
    if cached := _find_intact(*wanted):
        return cached
    if access.offline or hf.is_offline_mode():
        state = "damaged" if find_cached(*wanted) and not access.renew else "not"
        raise ValueError(
            f"{repository} at {revision} is {state} in the cache {access.cache_folder}, expected "
            "it there because downloads are off (HF_HUB_OFFLINE): python util/download.py fetches "
            "it where there is a network"
        )
    locks = access.cache_folder / ".locks" / access.repository_folder(repository).name
    with _explained(repository, revision, access):
        locks.mkdir(parents=True, exist_ok=True)
        with folder_lock(locks, "download", wait=True):
            # Another process may have downloaded them while this one waited.
            return _find_intact(*wanted) or _download_all(*wanted)


def find_cached(
    repository: str, choose: Choose, revision: str = "main", access: Access = DEFAULT_ACCESS
) -> list[Path]:
    """Return what `fetch` finds without asking anyone; empty if something is missing."""
    folder = access.repository_folder(repository)
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    files = [path for path in snapshot.rglob("*") if path.is_file()]
    try:
        names = choose(sorted(path.relative_to(snapshot).as_posix() for path in files))
    except ValueError:
        return []
    return [snapshot / name for name in names]


def _find_intact(
    repository: str, choose: Choose, revision: str, access: Access
) -> list[Path] | None:
    cached = [] if access.renew else find_cached(repository, choose, revision, access)
    return cached if all(map(_is_intact, cached)) else None


def commit_of(path: str | Path) -> str | None:
    """Return the commit that a file in a cache belongs to; None for any other file."""
    for folder, name in itertools.pairwise(Path(path).parts):
        if folder == "snapshots" and _COMMIT.fullmatch(name):
            return name
    return None


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal, as `sha256sum` prints it."""
    return _digest(path, hashlib.sha256())


def _digest(path: Path, digest: hashlib._Hash) -> str:
    with open_file(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _hash_as(etag: str, path: Path) -> str:
    """Hash a file as the Hub does: a large one by sha256, a small one as git does."""
    if len(etag) == 64:
        return sha256_of(path)
    header = b"blob %d\0" % path.stat().st_size
    return _digest(path, hashlib.sha1(header, usedforsecurity=False))


def _is_intact(path: Path) -> bool:
    # A snapshot links to contents by their hash; where links do not work, copies cannot be told.
    if not path.is_symlink() or not _HASH.fullmatch(path.readlink().name):
        return True
    blob = path.parent / path.readlink()
    if _has_its_hash(blob):
        return True
    logger.warning("%s is damaged: its hash is not %s", path, blob.name)
    return False


def _has_its_hash(blob: Path, anew: bool = False) -> bool:
    """Whether a content has the hash that it is named by; compared once, until it changes."""
    record, state = _check_of(blob)
    if anew:
        record.unlink(missing_ok=True)
    with suppress(OSError):
        if record.read_text() == state:
            return True
    if _hash_as(blob.name, blob) != blob.name:
        return False
    _remember(blob)
    return True


def _remember(blob: Path) -> None:
    record, state = _check_of(blob)
    with suppress(OSError):  # a cache that others keep: compared every time
        record.parent.mkdir(exist_ok=True)
        record.write_text(state)


def _check_of(blob: Path) -> tuple[Path, str]:
    """The file that notes a comparison, and what it holds as long as size and time stay."""
    status = blob.stat()
    state = f"{status.st_size} {status.st_mtime_ns}\n"
    return blob.parents[1] / ".checked" / blob.name, state


def _download_all(repository: str, choose: Choose, revision: str, access: Access) -> list[Path]:
    """Bring files of a revision's newest commit into the cache, as the library lays it out."""
    folder, token = access.repository_folder(repository), access.token
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    info = hf.HfApi(token=token).model_info(repository, revision=revision, timeout=timeout)
    if not _COMMIT.fullmatch(info.sha or ""):
        raise TypeError(f"{info.sha!r} is no commit")
    paths = []
    for name in choose([sibling.rfilename for sibling in info.siblings or ()]):
        url = hf.hf_hub_url(repository, name, revision=info.sha)
        announced = hf.get_hf_file_metadata(url, token)
        if not _HASH.fullmatch(announced.etag or ""):
            raise TypeError(f"{announced.etag!r} is no hash of {name}")
        blob = folder / "blobs" / announced.etag
        if not (blob.is_file() and _has_its_hash(blob, anew=access.renew)):
            _download(url, name, announced.size, blob, token)
        # The content is there: the library only links the name to it.
        options = dict(revision=info.sha, cache_dir=access.cache_folder, token=token)
        paths.append(Path(hf.hf_hub_download(repository, name, **options)))
    if revision != info.sha:
        reference = folder / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        with replacing(reference) as temporary:
            temporary.write_text(info.sha)
    return paths


def _download(url: str, name: str, size: int | None, blob: Path, token: str | bool | None) -> None:
    """Download a file under a name of this process's own, then give it its name if it is whole."""
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.lpd-{uuid.uuid4().hex[:8]}.incomplete")
    # A killed process cannot have the lock: go on with what it left.
    for left in blob.parent.glob(f"{blob.name}.lpd-*.incomplete"):
        left.replace(part)
    part.touch()
    if size is None or part.stat().st_size > size:
        os.truncate(part, 0)
    needed, free = (size or 0) - part.stat().st_size, shutil.disk_usage(part.parent).free
    try:
        if free < needed:
            room = f"{free / 1e6:.1f} MB free of the {needed / 1e6:.1f} MB needed"
            raise OSError(errno.ENOSPC, room)
        _receive(url, name, size, part, token)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno == errno.ENOSPC:  # a full disk is worse than a download from the start
            part.unlink()
        raise
    arrived = _hash_as(blob.name, part)
    if arrived != blob.name:
        part.unlink()
        raise ValueError(
            f"{name} arrived with hash {arrived[:12]}, expected {blob.name[:12]} as "
            f"{constants.ENDPOINT} announces; it was deleted: try again, and if it stays so, "
            "something on the way changes files"
        )
    part.replace(blob)
    _remember(blob)


def _receive(url: str, name: str, size: int | None, part: Path, token: str | bool | None) -> None:
    """Append to `part` what it lacks, over as many connections as it takes."""
    tries, start = 0, part.stat().st_size
    # Any process of a job may be the one that downloads; only rank 0 has a log for progress.
    bar = partial(tqdm, mininterval=logs.PROGRESS_SECONDS)
    if logs.is_main_process():
        bar = logs.progress
    options = dict(unit="B", unit_scale=True, desc=name, disable=utils.are_progress_bars_disabled())
    with part.open("ab") as output, bar(total=size, initial=start, **options) as bar:
        while size is None or start < size:
            # Compressed on the way, a range would be of other bytes.
            headers = {**utils.build_hf_headers(token=token), "Accept-Encoding": "identity"}
            if start:
                logger.warning("%s: going on after %.1f MB", name, start / 1e6)
                headers["Range"] = f"bytes={start}-"
            request = dict(headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            try:
                with hf.get_session().stream("GET", url, **request) as response:
                    hf.hf_raise_for_status(response)
                    if start and response.status_code != 206:  # all of it, from the start
                        output.seek(0)
                        output.truncate()
                        bar.update(-start)
                    for block in response.iter_bytes(_BLOCK):
                        output.write(block)
                        bar.update(len(block))
                return
            except errors.HfHubHTTPError:
                raise
            except errors.HTTPError as error:
                output.flush()
                tries = 0 if output.tell() > start else tries + 1
                if tries > _TRIES:
                    raise
                logger.warning("%s: %s", name, _reason(error))
                time.sleep(1)
                start = output.tell()


@contextmanager
def _explained(repository: str, revision: str, access: Access) -> Iterator[None]:
    """Turn what goes wrong between here and the Hub into a `ValueError` that says what to do."""
    try:
        yield
    except (errors.HTTPError, OSError, json.JSONDecodeError, TypeError, KeyError) as error:
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
        kinds = (type(error), status, type(status), *type(error).__mro__)
        problem = next(_PROBLEMS[kind] for kind in kinds if kind in _PROBLEMS)
        text = problem.format(
            where=f"{repository} at {constants.ENDPOINT}",
            kept=f"{repository} cannot be kept in the cache {access.cache_folder}",
            reason=_reason(error),
            revision=revision,
            status=status,
        )
        raise ValueError(text) from error


_UNREACHABLE = (
    "{where} cannot be reached, or broke off ({reason}), expected a network: the same command goes "
    "on where it stopped; for nodes without a network use python util/download.py beforehand"
)
# What to do about an error of the library, a status of HTTP or any (int), or a wider kind of error.
_PROBLEMS = {
    errors.GatedRepoError: "{where} is gated (HTTP {status}), expected that you were given access: "
    "ask for it on its page, then use `hf auth login` or HF_TOKEN",
    errors.RevisionNotFoundError: "{where} has no revision {revision!r}, expected a branch, a tag "
    "or a commit of it",
    401: "{where} is private or does not exist (HTTP {status}), expected the token of somebody who "
    "may read it: use `hf auth login` or HF_TOKEN",
    403: "{where} may not be read with this token (HTTP {status}), expected one that may",
    404: "{where} does not exist (HTTP {status}), expected a repository there",
    int: "{where} answered with HTTP {status}, expected the files: try again later",
    errors.HTTPError: _UNREACHABLE,
    errors.LocalEntryNotFoundError: _UNREACHABLE,
    OSError: "{kept} ({reason}), expected room and the right to write there, or another cache "
    "(HF_HOME)",
    Exception: "{where} does not answer as a Hub does ({reason}), expected one there (HF_ENDPOINT)",
}


def _reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, errors.LocalEntryNotFoundError):  # the library's words for many things
        error = error.__cause__ or error
    text = describe_os_error(error) if isinstance(error, OSError) else str(error)
    return " ".join((text or type(error).__name__).split())
