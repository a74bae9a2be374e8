"""Bad input ends in one line and exit code 2, on one process and under torchrun alike."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

logger = logging.getLogger(__name__)
# How a run ended, for the log file: people have it on the console already.
endings = logging.getLogger("lpd.endings")
endings.addHandler(logging.NullHandler())
endings.propagate = False

EXIT_CODE = 2
# How long a failing worker waits for the others to reach the same check.
PEER_TIMEOUT = timedelta(seconds=60)


class UserError(ValueError):
    """Something the user gave cannot work; the message names it, what was found and expected."""


@contextmanager
def blame(name: str) -> Iterator[None]:
    """Turn a `ValueError` or `OSError` of the block into a `UserError` that begins with `name`.

    Args:
        name: the flag or file at fault, for example `--group_sizes`.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except OSError as error:
        raise UserError(f"{name}: {describe_os_error(error)}") from error
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def describe_os_error(error: OSError) -> str:
    """One line for an operating-system error: the file, if known, and the reason."""
    reason = error.strerror or str(error)
    # A failed rename has two names; the second is the one the user knows.
    name = error.filename2 or error.filename
    return f"{name}: {reason}" if name else reason


def require_file(path: str | Path, flag: str, expected: str) -> Path:
    """Return `path` if it is a readable file.

    Args:
        path: the file a flag names.
        flag: the flag, for the message.
        expected: what the file should be, for the message.

    Raises:
        UserError: the file is missing, a folder or unreadable.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{flag}: {path} does not exist, expected {expected}")
    if not path.is_file():
        raise UserError(f"{flag}: {path} is not a file, expected {expected}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{flag}: {path} cannot be read, expected {expected}")
    return path


def require_writable_folder(path: str | Path, flag: str) -> Path:
    """Make the folder if needed and return it.

    Raises:
        UserError: it cannot be made or written to.
    """
    expected = "expected a folder that can be written to"
    if not str(path):
        raise UserError(f"{flag}: not given, {expected}")
    path = Path(path)
    try:
        str(path).encode()
    except UnicodeEncodeError:  # TensorBoard and JSON hold UTF-8 only
        raise UserError(f"{flag}: found {str(path)!a}, expected a name in UTF-8") from None
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Permission bits say little for root or on network file systems: try it.
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{flag}: {path}: {error.strerror or error}, {expected}") from error
    return path


def run(main: Callable[[], None]) -> None:
    """Run a command's `main`; end with one line and exit code 2 on bad input.

    So end what the operating system refuses and a lack of memory; any other error is a bug and
    keeps its traceback. Under torchrun the line is printed by one worker only and every worker
    exits with 2. With `--debug` on the command line the traceback is shown as well.

    `main` closes what it opens: a worker of several leaves without the interpreter's shutdown. It
    may end with an exit code of its own by raising `SystemExit(code)`.
    """
    one_of_several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    code = 0
    try:
        _log_bugs(main)
    except UserError as error:
        _report(str(error))
    except OSError as error:
        _report(describe_os_error(error))
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            _report(f"out of memory: {str(error).splitlines()[0]}")
        elif reason := compile_failure(error):
            _report(
                f"--compile: found that this machine cannot compile ({reason}), expected a C++ "
                "compiler (and Triton on a GPU), or --no-compile"
            )
        else:
            raise
    except KeyboardInterrupt:
        logger.warning("interrupted")
        _leave(130)
    except SystemExit as end:
        if not one_of_several:
            raise
        code = int(end.code or 0)
    if one_of_several:
        # A sharded model keeps gloo's threads alive, and one that drops a Python tensor while the
        # interpreter shuts down aborts the process: one run in forty on a busy machine.
        _leave(code)


def _log_bugs(main: Callable[[], None]) -> None:
    """Run `main`; a traceback goes to the log file as well as to the console."""
    try:
        main()
    except (UserError, OSError):
        raise
    except Exception:
        endings.exception("ended by an error")
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Whether NumPy, PyTorch's CPU allocator, a GPU or one of its libraries could not allocate."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
        or "_ALLOC_FAILED" in str(error)
    )


def compile_failure(error: Exception) -> str | None:
    """In one line why `torch.compile` failed; None if it is not what failed."""
    if "torch._dynamo.exc" not in sys.modules:  # slow to import, and nothing was compiled
        return None
    from torch._dynamo.exc import TorchDynamoException

    text = str(error).strip()
    if isinstance(error, TorchDynamoException) or "C compiler" in text:
        return next(iter(text.splitlines()), type(error).__name__)
    return None


def _report(message: str) -> None:
    if "--debug" in sys.argv:
        traceback.print_exc()
    _exit_together(message)


def _exit_together(message: str) -> None:
    """Print `message` once over all workers, then leave this one with exit code 2."""
    # torchrun ends the remaining workers as soon as one has failed; this one ends by itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    line = f"error: {' '.join(message.split())}"
    endings.error("%s", line)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        prints, wait_for_peers = True, None
    else:
        prints, wait_for_peers = _claim_report(world_size)
    if prints:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()
    if wait_for_peers is not None:
        wait_for_peers()
    # Not sys.exit: interpreter shutdown could block on a process group whose peers are gone.
    _leave(EXIT_CODE)


def _leave(code: int) -> None:
    """Exit at once, without the interpreter's shutdown."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _claim_report(world_size: int) -> tuple[bool, Callable[[], None] | None]:
    """Settle, through the launcher's key-value store, which worker prints the line."""
    rank = int(os.environ.get("RANK", "0"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return rank == 0, None
    from torch.distributed import DistNetworkError, TCPStore

    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=PEER_TIMEOUT,
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        arrived = store.add(f"lpd/user_error/{attempt}", 1)
    except (RuntimeError, DistNetworkError):
        return rank == 0, None
    all_here = f"lpd/user_error/{attempt}/all"
    if arrived == world_size:
        store.set(all_here, "1")

    def wait_for_peers() -> None:
        try:
            store.wait([all_here], PEER_TIMEOUT)
        except RuntimeError:  # a peer never came; the launcher ends it
            return

    return arrived == 1, wait_for_peers
