"""Files that are either there in full or not there."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a `ValueError` says where it stops being JSON."""
    try:
        with open_file(path) as stream:
            content = stream.read()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged JSON at character {error.pos}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, too deep or absurdly long numbers
        raise ValueError(f"{path}: {error}, expected JSON text") from error


def open_file(path: str | Path) -> BinaryIO:
    """Open a file to read its bytes; a `ValueError` without its name if it is none, as a pipe."""
    # Without O_NONBLOCK, opening a pipe would wait for somebody to write to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("is a pipe, a folder or a device, expected a file")
    return os.fdopen(descriptor, "rb")


@contextmanager
def replacing(
    path: str | Path, durable: bool = True, previous: Path | None = None
) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` if the block succeeds, else goes.

    So a reader sees the old file or the whole new one, after a power cut as well if `durable` (too
    slow for very many small files). The old one goes to `previous`. An `OSError` names `path`.
    """
    path = Path(path)
    # A fixed name: what a killed process leaves behind, the next write of the file replaces.
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        if durable:  # the data are on the disk before the name is
            _bring_to_disk(temporary)
        if previous is not None and path.exists():
            _keep(path, previous)
        temporary.replace(path)
        if durable:
            with suppress(OSError):  # some network file systems cannot do this to a folder
                _bring_to_disk(path.parent)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a full disk
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _keep(path: Path, previous: Path) -> None:
    """Give the file a second name, so that at no time there is none under the first."""
    link = previous.with_name(f".{previous.name}.part")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links
        path.replace(previous)
    else:
        link.replace(previous)


def _bring_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(values: Mapping[str, Any], path: str | Path) -> None:
    """Write a readable JSON file."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")
