"""The content of one file of the Hub: downloaded, resumed, and compared with its announced hash."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.file_download import http_get
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
        token: see `util.hub.files.Access`.
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
