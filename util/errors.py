"""Bad input ends in one line and exit code 2, on one process and under torchrun alike."""

import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from util.logs import endings, setup

logger = logging.getLogger(__name__)

EXIT_CODE = 2
# How long a failing worker waits for the others to reach the same check.
PEER_TIMEOUT = timedelta(seconds=60)


class UserError(ValueError):
    """Something the user gave cannot work; the message names it, what was found and expected."""


@contextmanager
def blame(name: str) -> Iterator[None]:
    """Turn a `ValueError` or `OSError` of the block into a `UserError` that begins with `name`."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else error
        raise UserError(f"{name}: {reason}") from error


def describe_os_error(error: OSError) -> str:
    """Say in one line which file an operating-system error is about, if known, and the reason."""
    reason = error.strerror or str(error)
    # A failed rename has two names; the second is the one the user knows.
    name = error.filename2 or error.filename
    return f"{name}: {reason}" if name else reason


def require_file(path: str | Path, flag: str, expected: str) -> Path:
    """Return `path` if it is a readable file, else raise a `UserError` that names the flag."""
    path = Path(path)
    if path.is_file() and os.access(path, os.R_OK):
        return path
    problem = "is not a file" if path.exists() else "does not exist"
    problem = "cannot be read" if path.is_file() else problem
    raise UserError(f"{flag}: {path} {problem}, expected {expected}")


def require_writable_folder(path: str | Path, flag: str) -> Path:
    """Make the folder if needed and return it; a `UserError` if it cannot be written to."""
    expected = "expected a folder that can be written to"
    if not str(path):
        raise UserError(f"{flag}: not given, {expected}")
    path = Path(path)
    try:
        str(path).encode()
        path.mkdir(parents=True, exist_ok=True)
        # Permission bits say little for root or on network file systems: try it.
        tempfile.TemporaryFile(dir=path).close()
    except UnicodeEncodeError:  # TensorBoard and JSON hold UTF-8 only
        raise UserError(f"{flag}: found {str(path)!a}, expected a name in UTF-8") from None
    except OSError as error:
        raise UserError(f"{flag}: {path}: {error.strerror or error}, {expected}") from error
    return path


def require_writable_file(path: str | Path, flag: str, *suffixes: str) -> Path:
    """Return the path of a file to write, its folder made; a `UserError` if it cannot be.

    If there are `suffixes`, its name must end in one of them.
    """
    path = Path(path)
    if suffixes and path.suffix not in suffixes:
        expected = f"expected a name ending in {' or '.join(suffixes)}"
        raise UserError(f"{flag}: found {path.name!r}, {expected}")
    if path.is_dir():
        raise UserError(f"{flag}: {path} is a folder, expected a file")
    require_writable_folder(path.parent, flag)
    return path


def run(main: Callable[[], None]) -> None:
    """Run a command's `main`, its log set up; end with one line and exit code 2 on bad input.

    So end what the operating system refuses and a lack of memory; a bug keeps its traceback, which
    `--debug` shows of all. `main` closes what it opens: workers leave without a shutdown.
    """
    one_of_several, code = int(os.environ.get("WORLD_SIZE", "1")) > 1, 0
    setup()
    try:
        main()
    except KeyboardInterrupt:
        logger.warning("interrupted")
        _leave(130)
    except SystemExit as end:
        if not one_of_several:
            raise
        code = int(end.code or 0)
    except Exception as error:
        if not isinstance(error, UserError | OSError):
            endings.exception("ended by an error")
        message = _message_of(error)
        if message is None:
            raise
        if "--debug" in sys.argv:
            traceback.print_exc()
        _exit_together(f"error: {' '.join(message.split())}")
    if one_of_several:
        # Not the interpreter's shutdown: a sharded model keeps gloo's threads alive, and one that
        # drops a Python tensor meanwhile aborts the process, in one of forty runs.
        _leave(code)


def _message_of(error: Exception) -> str | None:
    """Say what to tell the user; None of a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return describe_os_error(error)
    if not isinstance(error, MemoryError | RuntimeError):
        return None
    if is_out_of_memory(error):
        return f"out of memory: {str(error).splitlines()[0]}"
    reason = compile_failure(error)
    return reason and (
        f"--compile: found that this machine cannot compile ({reason}), expected a C++ compiler "
        "(and Triton on a GPU), or --no-compile"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether NumPy, PyTorch's CPU allocator, a GPU or its libraries could not allocate."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return "can't allocate memory" in str(error) or "_ALLOC_FAILED" in str(error)


def compile_failure(error: Exception) -> str | None:
    """Say in one line why `torch.compile` failed; None if it is not what failed."""
    if "torch._dynamo.exc" not in sys.modules:  # slow to import, and nothing was compiled
        return None
    from torch._dynamo.exc import TorchDynamoException

    text = str(error).strip()
    if isinstance(error, TorchDynamoException) or "C compiler" in text:
        return next(iter(text.splitlines()), type(error).__name__)
    return None


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_together(line: str) -> None:
    """Print `line` once over all workers, then leave this one with exit code 2."""
    # torchrun ends the remaining workers as soon as one has failed; this one ends by itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    endings.error("%s", line)
    world_size, rank = (int(os.environ.get(*pair)) for pair in (("WORLD_SIZE", "1"), ("RANK", "0")))
    prints, store = rank == 0, None
    # The launcher's key-value store settles which worker prints: the first that comes.
    key = f"lpd/user_error/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if world_size > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        from torch.distributed import TCPStore

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        with suppress(RuntimeError):
            store = TCPStore(address, port, is_master=False, timeout=PEER_TIMEOUT)
            arrived = store.add(key, 1)
            prints = arrived == 1
            if arrived == world_size:
                store.set(f"{key}/all", "1")
    if prints or world_size == 1:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    if store is not None:
        with suppress(RuntimeError):  # a peer never came; the launcher ends it
            store.wait([f"{key}/all"], PEER_TIMEOUT)
    # Not sys.exit: interpreter shutdown could block on a process group whose peers are gone.
    _leave(EXIT_CODE)
