"""Files of Hugging Face repositories: from the local cache, else downloaded, whole and checked.

The cache is the one that all of `huggingface_hub` shares. Its own `hf_hub_download` begins a killed
download anew, compares no hash and trusts `flock`, which lies on some cluster file systems: here it
only links names to contents.
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
from util.files import replacing
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
    """How repositories are reached; the defaults are the library's, which HF_* variables set.

    Attributes:
        cache: folder of the cache.
        token: that identifies the user; False for none, None for the one of the machine.
        offline: use the cache only.
        renew: ask for the newest commit of a branch, and compare the cache's hashes anew.
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
        return self.cache_folder / "--".join(("models", *repository.split("/")))


DEFAULT_ACCESS = Access()


def fetch(
    repository: str, choose: Choose, revision: str = "main", access: Access = DEFAULT_ACCESS
) -> list[Path]:
    """Return files of one commit from the cache, downloaded first if it lacks them.

    A branch that is in the cache stays at the commit that it had when it was downloaded. Of several
    processes one downloads, the others wait for it.

    Args:
        repository: `user/name`.
        choose: picks among the names in the repository.
        revision: branch, tag or commit.
        access: how to reach the repository.

    Returns:
        Paths `.../snapshots/<commit>/<name>`, as `choose` ordered them.

    Raises:
        ValueError: says what to do about files that cannot be had.
    """
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ValueError(f"found revision {revision!r}, expected a branch, a tag or a commit")
    cached = find_cached(repository, choose, revision, access)
    if cached and not access.renew and all(map(_is_intact, cached)):
        return cached
    if access.offline or hf.is_offline_mode():
        state = "damaged" if cached and not access.renew else "not"
        raise ValueError(
            f"{repository} at {revision} is {state} in the cache {access.cache_folder}, expected "
            "it there because downloads are off (HF_HUB_OFFLINE): python util/download.py fetches "
            "it where there is a network"
        )
    folder = access.repository_folder(repository)
    locks = access.cache_folder / ".locks" / folder.name
    with _explained(repository, revision, access):
        locks.mkdir(parents=True, exist_ok=True)
        with folder_lock(locks, "download", wait=True):
            # What another process has downloaded while this one waited.
            cached = find_cached(repository, choose, revision, access)
            if cached and not access.renew and all(map(_is_intact, cached)):
                return cached
            return _download_all(repository, choose, revision, access)


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
    with path.open("rb") as file:
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
    """Whether a file of a snapshot has the announced hash; compared once, until it changes."""
    # A snapshot links to contents by their hash; where links do not work, copies cannot be told.
    if not path.is_symlink() or not _HASH.fullmatch(path.readlink().name):
        return True
    blob = path.parent / path.readlink()
    if _has_its_hash(blob):
        return True
    logger.warning("%s is damaged: its hash is not %s", path, blob.name)
    return False


def _has_its_hash(blob: Path) -> bool:
    with suppress(OSError):
        if _record(blob).read_text() == _state(blob):
            return True
    if _hash_as(blob.name, blob) != blob.name:
        return False
    _remember(blob)
    return True


def _remember(blob: Path) -> None:
    """Note that a content has its hash as long as size and time stay the same."""
    with suppress(OSError):  # a cache that others keep: compared every time
        _record(blob).parent.mkdir(exist_ok=True)
        _record(blob).write_text(_state(blob))


def _record(blob: Path) -> Path:
    return blob.parents[1] / ".checked" / blob.name


def _state(blob: Path) -> str:
    status = blob.stat()
    return f"{status.st_size} {status.st_mtime_ns}\n"


def _download_all(repository: str, choose: Choose, revision: str, access: Access) -> list[Path]:
    """Bring files of a revision's newest commit into the cache, as the library lays it out."""
    info = hf.HfApi(token=access.token).model_info(
        repository, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    if not _COMMIT.fullmatch(info.sha or ""):
        raise TypeError(f"{info.sha!r} is no commit")
    paths = []
    for name in choose([sibling.rfilename for sibling in info.siblings or ()]):
        url = hf.hf_hub_url(repository, name, revision=info.sha)
        announced = hf.get_hf_file_metadata(url, access.token)
        etag = announced.etag or ""
        if not _HASH.fullmatch(etag):
            raise TypeError(f"{etag!r} is no hash of {name}")
        blob = access.repository_folder(repository) / "blobs" / etag
        if access.renew:
            _record(blob).unlink(missing_ok=True)
        if not (blob.is_file() and _has_its_hash(blob)):
            _download(url, name, announced.size, blob, access.token)
        # The content is there: the library only links the name to it.
        linked = hf.hf_hub_download(
            repository,
            name,
            revision=info.sha,
            cache_dir=access.cache_folder,
            token=access.token,
        )
        paths.append(Path(linked))
    if revision != info.sha:
        reference = access.repository_folder(repository) / "refs" / revision
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
    hidden = utils.are_progress_bars_disabled()
    with (
        part.open("ab") as output,
        bar(total=size, initial=start, unit="B", unit_scale=True, desc=name, disable=hidden) as bar,
    ):
        while size is None or start < size:
            if start:
                logger.warning("%s: going on after %.1f MB", name, start / 1e6)
            # Compressed on the way, a range would be of other bytes.
            headers = {**utils.build_hf_headers(token=token), "Accept-Encoding": "identity"}
            if start:
                headers["Range"] = f"bytes={start}-"
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            try:
                with hf.get_session().stream(
                    "GET", url, headers=headers, timeout=timeout
                ) as response:
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
                logger.warning("%s: %s", name, _one_line(error))
                time.sleep(1)
                start = output.tell()


@contextmanager
def _explained(repository: str, revision: str, access: Access) -> Iterator[None]:
    """Turn what goes wrong between here and the Hub into a `ValueError` that says what to do."""
    where = f"{repository} at {constants.ENDPOINT}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{where} is gated (HTTP {error.response.status_code}), expected that you were given "
            "access: ask for it on its page, then use `hf auth login` or HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(
            f"{where} has no revision {revision!r}, expected a branch, a tag or a commit of it"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise ValueError(f"{where} {_REFUSALS.get(status, _REFUSAL).format(status)}") from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError) as error:
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
        raise ValueError(
            f"{where} cannot be reached, or broke off ({_one_line(cause or error)}), expected a "
            "network: the same command goes on where it stopped; for nodes without a network use "
            "python util/download.py beforehand"
        ) from error
    except OSError as error:
        raise ValueError(
            f"{repository} cannot be kept in the cache {access.cache_folder} "
            f"({' '.join(describe_os_error(error).split())}), expected room and the right to "
            "write there, or another cache (HF_HOME)"
        ) from error
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(
            f"{where} does not answer as a Hub does ({_one_line(error)}), expected one there "
            "(HF_ENDPOINT)"
        ) from error


# What to do about an answer of HTTP.
_REFUSALS = {
    401: "is private or does not exist (HTTP {}), expected the token of somebody who may read it: "
    "use `hf auth login` or HF_TOKEN",
    403: "may not be read with this token (HTTP {}), expected one that may",
    404: "does not exist (HTTP {}), expected a repository there",
}
_REFUSAL = "answered with HTTP {}, expected the files: try again later"


def _one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())
