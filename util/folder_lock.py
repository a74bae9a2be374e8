"""One run at a time in a folder, on any file system.

Advisory locks answer yes to everyone on some cluster file systems, so the lock is a file that names
its owner and holds a counter, which the owner advances every few seconds. Whether an owner lives is
asked of the machine, or seen in the counter if it is another machine's.
"""

import json
import logging
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from util.errors import EXIT_CODE, UserError
from util.logs import endings

logger = logging.getLogger(__name__)

# Seconds between two advances of the counter, and without one until a distant owner counts as dead:
# more than a busy owner may need for one, and than a network file system may show old content.
BEAT = 5.0
SILENCE = 60.0

Owner = dict[str, object]


def lock_file(folder: Path, kind: str) -> Path:
    """Name the lock of a kind of run."""
    return folder / f".{kind}.lock"


@contextmanager
def folder_lock(folder: Path, kind: str, wait: bool = False) -> Iterator[None]:
    """Keep other runs of this kind out of an existing folder, or `wait` until they let go of it.

    A `UserError` that begins with the folder says that another run has it, an `OSError` that the
    file cannot be written. Should another run take the folder over all the same (this one seemed
    dead to it for `SILENCE` seconds), this process ends at once with one line.
    """
    path, owner = lock_file(folder, kind), _describe_self()
    while (other := _take(path, owner)) is not None:
        if not wait:
            raise _in_use(path, other)
        time.sleep(0.5)
    released = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, owner, released), daemon=True)
    beats.start()
    try:
        yield
    finally:
        released.set()
        beats.join(BEAT)
        with suppress(OSError):
            if _read(path)[0] == owner:
                path.unlink()


def require_free(folder: Path, kind: str) -> None:
    """Raise as `folder_lock` does, ahead of it, if a process of this machine has the folder."""
    path = lock_file(folder, kind)
    with suppress(OSError):  # there is none, or `folder_lock` will say more
        owner, count = _read(path)
        if owner.get("machine") == _machine() and _lives(path, owner, count):
            raise _in_use(path, owner)


def _describe_self() -> Owner:
    """Tell this process from every other one of any machine and time."""
    return {
        "process": os.getpid(),
        "began": _start_time(os.getpid()),
        "machine": _machine(),
        "host": platform.node(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "id": uuid.uuid4().hex,
    }


def _machine() -> str:
    """Say which processes can be asked after here: one boot of one system, one space of ids."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    return platform.node()


def _start_time(process: int) -> str | None:
    """Say when a living process began, in the kernel's ticks; None if it is gone, "" if unknown."""
    # A number may be given to another process later; a start time is not.
    with suppress(OSError, IndexError):
        # Behind the name, which may hold anything: the state, ..., and 19 places on the start.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        # Z and X have ended, and nobody has waited for them yet.
        return None if fields[0] in "ZX" else fields[19]
    with suppress(PermissionError):  # it is someone else's
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return None
    return ""


def _take(path: Path, owner: Owner) -> Owner | None:
    """Make the file, or take over a dead owner's; return its owner if that lives."""
    # Of two that take it over at once, both may believe they have it, until one beats.
    while True:
        try:
            file = path.open("xb")
            break
        except FileExistsError:
            if path.is_symlink():  # it may lead nowhere, and is not ours
                path.unlink(missing_ok=True)
            with suppress(FileNotFoundError):  # let go of meanwhile
                other, count = _read(path)
                if _lives(path, other, count):
                    return _read(path)[0]
                if _read(path)[0] == other:
                    path.unlink()
    try:
        with file:
            file.write(_encode(owner, 0))
    except OSError as error:  # a full disk: an empty file would name nobody
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    return None


def _in_use(path: Path, owner: Owner) -> UserError:
    found = f"in use by another run ({_name(owner)})"
    return UserError(f"{path.parent} is {found}, expected a folder for each")


def _lives(path: Path, owner: Owner, count: int) -> bool:
    """Tell whether the owner of a lock still runs; of another machine it takes a while to see."""
    if owner.get("machine") == _machine():
        began = _start_time(owner["process"])
        return began is not None and began in (owner["began"], "")
    watch = "%s was left by another run (%s): watching for %.0f s whether it lives"
    logger.info(watch, path, _name(owner), SILENCE)
    until = time.monotonic() + SILENCE
    while time.monotonic() < until:
        time.sleep(SILENCE / 60)  # whether a counter advances is a matter of time alone
        now = _read(path)
        if now[0] and now != (owner, count):
            return True
    return False


def _beat(path: Path, owner: Owner, released: threading.Event) -> None:
    """Advance the counter until the lock is released."""
    count = 0
    while not released.wait(BEAT):
        count += 1
        try:
            other, _ = _read(path)
            if other and other != owner:
                line = f"error: {path.parent} was taken over by another run ({_name(other)})"
                endings.error("%s", line)
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
                os._exit(EXIT_CODE)
            # In place and of one length: a full disk has room for it. Opened anew each time, as
            # network file systems show others what was closed.
            with path.open("r+b") as file:
                file.write(_encode(owner, count))
        except OSError as error:  # the next one may pass
            logger.debug("%s: %s", path, error)


def _encode(owner: Owner, count: int) -> bytes:
    return f"{count:012d} {json.dumps(owner)}\n".encode()


def _read(path: Path) -> tuple[Owner, int]:
    """Read owner and counter; no owner where the file is not whole."""
    count, _, text = path.read_text(errors="replace").partition(" ")
    with suppress(ValueError, TypeError, KeyError, OverflowError, RecursionError):
        owner = dict(json.loads(text))
        owner["process"] = int(owner["process"])
        if 0 < owner["process"] < 2**31 and "began" in owner:
            return owner, int(count)
    return {}, 0


def _name(owner: Owner) -> str:
    process, host, since = (owner.get(name, "?") for name in ("process", "host", "since"))
    return f"process {process} on {host}, since {since}"
