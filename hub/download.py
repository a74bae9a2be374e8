"""Files of Hugging Face repositories: from the library's cache, else downloaded into it, checked.

The library's own download begins anew after a kill and compares no hash.
"""

import errno
import hashlib
import json
import logging
import re
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub as hf
from huggingface_hub import constants, errors, utils
from huggingface_hub.file_download import http_get

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


@dataclass(frozen=True)
class Access:
    """How repositories are reached; the defaults are the library's, which HF_* variables set."""

    cache: Path | str | None = None  # its folder
    token: str | bool | None = None  # of the user; False for none, None for the machine's
    offline: bool = False  # use the cache only
    renew: bool = False  # ask for a branch's newest commit, compare the cache's hashes anew

    def folder(self, repository: str) -> Path:
        """Return where the cache keeps a repository."""
        cache = Path(self.cache or constants.HF_HUB_CACHE).expanduser().resolve()
        return cache / "--".join(("models", *repository.split("/")))


DEFAULT_ACCESS = Access()


def fetch(
    repository: str, choose: Choose, revision: str = "main", access: Access = DEFAULT_ACCESS
) -> list[Path]:
    """Return files of one commit, `.../snapshots/<commit>/<name>`, from the cache or downloaded.

    A revision (branch, tag, commit) stays at the commit that it was downloaded from. Of several
    processes one downloads, the others wait for it. A `ValueError` says what to do otherwise.
    """
    if not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", revision) or ".." in revision:
        raise ValueError(f"found revision {revision!r}, expected a branch, a tag or a commit")
    wanted, folder = (repository, choose, revision, access), access.folder(repository)
    if cached := find_cached(*wanted):
        return cached
    if access.offline or hf.is_offline_mode():
        raise ValueError(
            f"{repository} at {revision} is not in the cache {folder.parent}, expected it there "
            "because downloads are off (HF_HUB_OFFLINE): python util/download.py fetches it where "
            "there is a network"
        )
    try:
        locks = folder.parent / ".locks" / folder.name
        locks.mkdir(parents=True, exist_ok=True)
        with folder_lock(locks, "download", wait=True):
            # Another process may have downloaded them while this one waited.
            return find_cached(*wanted) or _download_all(*wanted)
    except (errors.HTTPError, OSError, json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(_explain(error, repository, revision, folder.parent)) from error


def find_cached(
    repository: str, choose: Choose, revision: str = "main", access: Access = DEFAULT_ACCESS
) -> list[Path]:
    """Return what `fetch` finds without asking anyone; empty if it would ask."""
    if access.renew:
        return []
    folder = access.folder(repository)
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    files = [path for path in snapshot.rglob("*") if path.is_file()]
    try:
        names = choose(sorted(path.relative_to(snapshot).as_posix() for path in files))
    except ValueError:
        return []
    cached = [snapshot / name for name in names]
    return cached if all(map(_is_intact, cached)) else []


def commit_of(path: str | Path) -> str | None:
    """Return the commit that a file in a cache belongs to; None for any other file."""
    commit = re.search("/snapshots/([0-9a-f]{40})/", Path(path).as_posix())
    return commit and commit[1]


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal, as `sha256sum` prints it."""
    return _digest(path, hashlib.sha256())


def _digest(path: Path, digest: "hashlib._Hash") -> str:
    with open_file(path) as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _is_intact(path: Path, anew: bool = False) -> bool:
    """Tell whether a content has the hash that it is named by; compared once, until it changes."""
    # A snapshot links to contents by their hash; where links do not work, copies cannot be told.
    blob = path.parent / path.readlink() if path.is_symlink() else path
    if not _HASH.fullmatch(blob.name):
        return True
    status, record = blob.stat(), blob.parents[1] / ".checked" / blob.name
    state = f"{status.st_size} {status.st_mtime_ns}\n"
    with suppress(OSError):
        if record.read_text() == state and not anew:
            return True
    # The Hub names a large file by its sha256, a small one as git does.
    header = b"blob %d\0" % status.st_size
    git = hashlib.sha1(header, usedforsecurity=False)
    if _digest(blob, git if len(blob.name) == 40 else hashlib.sha256()) != blob.name:
        logger.warning("%s is damaged: its hash is not %s", path, blob.name)
        return False
    with suppress(OSError):  # a cache that others keep: compared every time
        record.parent.mkdir(exist_ok=True)
        record.write_text(state)
    return True


def _download_all(repository: str, choose: Choose, revision: str, access: Access) -> list[Path]:
    """Bring files of a revision's newest commit into the cache, as the library lays it out."""
    folder, token, paths = access.folder(repository), access.token, []
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    info = hf.HfApi(token=token).model_info(repository, revision=revision, timeout=timeout)
    for name in choose([sibling.rfilename for sibling in info.siblings or ()]):
        url = hf.hf_hub_url(repository, name, revision=info.sha)
        announced = hf.get_hf_file_metadata(url, token)
        if not _HASH.fullmatch(announced.etag or ""):
            raise TypeError(f"{announced.etag!r} is no hash of {name}")
        blob = folder / "blobs" / announced.etag
        if not (blob.is_file() and _is_intact(blob, anew=access.renew)):
            _download(url, name, announced.size, blob, token)
        # The content is there: the library only links the name to it.
        options = dict(revision=info.sha, cache_dir=folder.parent, token=token)
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
        if left.stat().st_size <= (size or 0):
            left.replace(part)
        else:
            left.unlink()
    # Compressed on the way, a range would be of other bytes.
    headers = {**utils.build_hf_headers(token=token), "Accept-Encoding": "identity"}
    options = dict(expected_size=size, displayed_filename=name, tqdm_class=logs.progress)
    try:
        tries = 0
        with part.open("ab") as file:
            while True:
                start = file.tell()
                try:
                    http_get(url, file, resume_size=start, headers=headers, **options)
                    break
                except errors.HTTPError:  # the library gives up where a line is reset
                    tries = 0 if file.tell() > start else tries + 1
                    if tries == 3:
                        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:  # a full disk is worse than a download from the start
            part.unlink()
        raise
    part.replace(blob)
    if not _is_intact(blob):
        blob.unlink()
        raise ValueError(
            f"{name} arrived damaged, expected hash {blob.name[:12]} as {constants.ENDPOINT} "
            "announces: try again, and if it stays so, something on the way changes files"
        )


def _explain(error: Exception, repository: str, revision: str, cache: Path) -> str:
    """Say in one line what went wrong between here and the Hub, and what to do."""
    text = describe_os_error(error) if isinstance(error, OSError) else str(error)
    reason = " ".join((text or type(error).__name__).split())
    where = f"{repository} at {constants.ENDPOINT}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{where} has no revision {revision!r}, expected a branch, a tag or a commit of it"
    if isinstance(error, errors.HfHubHTTPError):
        status, login = error.response.status_code, "use `hf auth login` or HF_TOKEN"
        found, expected = {
            401: (
                "is private or does not exist",
                f"the token of somebody who may read it: {login}",
            ),
            403: ("may not be read with this token", "one that may"),
            404: ("does not exist", "a repository there"),
        }.get(status, ("fails", "the files: try again later"))
        if isinstance(error, errors.GatedRepoError):
            found = "is gated"
            expected = f"that you were given access: ask for it on its page, then {login}"
        return f"{where} {found} (HTTP {status}), expected {expected}"
    if isinstance(error, errors.HTTPError | errors.LocalEntryNotFoundError):
        return (
            f"{where} cannot be reached, or broke off ({reason}), expected a network: the same "
            "command goes on where it stopped; for nodes without a network use python "
            "util/download.py beforehand"
        )
    if isinstance(error, OSError):
        return (
            f"{repository} cannot be kept in the cache {cache} ({reason}), expected room and the "
            "right to write there, or another cache (HF_HOME)"
        )
    return f"{where} does not answer as a Hub does ({reason}), expected one there (HF_ENDPOINT)"
