"""Start Python commands in no time: forked from a process that has imported what they import.

`python -m tests.warm FD` is that process: it waits at a socket for what to become.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import inspect
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = "torch.distributed.run"
# Slow to import, and imported by commands or by what they call.
MODULES = (
    *("main_lpd", "main_cache", "tokenizers.train_vq", "util.download", "orders.run_lpd_order"),
    *(f"scripts.{path.stem}" for path in (ROOT / "scripts").glob("[a-z]*.py")),
    *(TORCHRUN, "torch._dynamo", "matplotlib.pyplot", "torch_fidelity", "runpy"),
)
# Variables that nothing reads before a command is under way; any other takes a real start.
READ_LATE = re.compile(
    r"((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+"
    r"|TORCH_(HOME|NCCL_ASYNC_ERROR_HANDLING)|HF_\w+|NO_PROXY|PYTEST_\w+|SLURM_\w+|INTERRUPTED_FILE)"
)
PR_SET_CHILD_SUBREAPER = 36
LONGEST = 2**18  # bytes of a message
lock = threading.Lock()


class Popen(subprocess.Popen):
    """`subprocess.Popen` that forks a waiting process in place of a new one where it may."""

    def _execute_child(self, args: list[str], *rest: object) -> None:
        given = inspect.signature(super()._execute_child).bind(args, *rest).arguments
        variables = dict(given["env"] or os.environ)
        if given["preexec_fn"] is not None or not can_be_forked(args, variables):
            super()._execute_child(args, *rest)
            return
        pipes = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        request = {
            "arguments": [word for word in args[1:] if word != "-u"],
            "unbuffered": "-u" in args[:2],
            "variables": variables,
            "folder": str(given["cwd"] or Path.cwd()),
            "new_session": given["start_new_session"],
        }
        own = [number if pipe < 0 else pipe for number, pipe in enumerate(pipes)]
        self.pid = self._fork(json.dumps(request).encode(), own)
        self._child_created = True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[name] for name in ends))

    def _fork(self, request: bytes, descriptors: list[int]) -> int:
        """Make the waiting process fork; return the id of the new one, a child of this one."""
        with lock:
            adopt = ctypes.CDLL(None).prctl
            adopt(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(server(), [request], descriptors)
                return int(server().recv(LONGEST))
            finally:
                adopt(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def can_be_forked(args: list[str], variables: dict[str, str]) -> bool:
    """Whether a fork would be what a start is."""
    words = [word for word in args if word != "-u"]
    script = words[2 if words[1] == "-m" else 1]
    own = base_variables()
    changed = [name for name in {*own, *variables} if own.get(name) != variables.get(name)]
    return (
        (words[0], sys.platform) == (sys.executable, "linux")
        and not script.startswith("-")
        and all(map(READ_LATE.fullmatch, changed))
    )


@cache
def base_variables() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}


@cache
def server() -> socket.socket:
    """The end of the socket at which the process waits."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=base_variables(),
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the tests
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def serve(waiting: socket.socket) -> tuple[dict, list[int]]:
    """Fork for each request; return in the new process, with what it is to become."""
    while True:
        text, descriptors, *_ = socket.recv_fds(waiting, LONGEST, 3)
        if not text:
            os._exit(0)
        read, write = os.pipe()
        if os.fork() == 0:  # ends at once, so that its child becomes one of who asked
            if child := os.fork():
                os.write(write, str(child).encode())
                os._exit(0)
            os.close(read)
            os.close(write)
            waiting.close()
            return json.loads(text), descriptors
        os.wait()
        waiting.send(os.read(read, LONGEST))
        for descriptor in (read, write, *descriptors):
            os.close(descriptor)


def become(request: dict, descriptors: list[int]) -> None:
    """Do what `python` would do with these arguments."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if request["new_session"]:
        os.setsid()
    os.chdir(request["folder"])
    before = of_the_hub(os.environ)
    os.environ.clear()
    os.environ.update(request["variables"])
    if of_the_hub(os.environ) != before:
        forget_the_hub()
    if request["unbuffered"]:
        sys.stdout.reconfigure(write_through=True)
    sys.modules["numpy"].random.seed()
    first, *more = request["arguments"]
    if first == "-m":
        module, *more = more
        sys.argv, sys.path[0] = [module, *more], request["folder"]
        if module == TORCHRUN and (work := fork_workers(more)):
            return become(*work)
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *more], str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def of_the_hub(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name.startswith("HF_")}


def forget_the_hub() -> None:
    """Have the Hub's library, which reads its variables when imported, imported anew."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        ours = Path(file).is_relative_to(ROOT) and ".venv" not in file and name != "__main__"
        if ours or name.split(".")[0] == "huggingface_hub":
            del sys.modules[name]


def fork_workers(arguments: list[str]) -> tuple[dict, list[int]] | None:
    """Fork torchrun's workers before it has threads; return in one when torchrun starts it."""
    count = next(int(word.split("=")[1]) for word in arguments if "--nproc_per_node=" in word)
    spares: list[tuple[int, socket.socket]] = []
    for _ in range(count):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            for end in (ours, *(other for _, other in spares)):
                end.close()
            text, descriptors, *_ = socket.recv_fds(theirs, LONGEST, 3)
            if not text:
                os._exit(0)
            theirs.close()
            return json.loads(text), descriptors
        theirs.close()
        spares.append((pid, ours))

    class Worker(Popen):
        def _fork(self, request: bytes, descriptors: list[int]) -> int:
            pid, spare = spares.pop(0)
            socket.send_fds(spare, [request], descriptors)
            spare.close()
            return pid

    starts = importlib.import_module("torch.distributed.elastic.multiprocessing.subprocess_handler")
    starts.subprocess_handler.Popen = Worker
    return None


def end(error: BaseException | None) -> NoReturn:
    """End as `python` would, but leave the memory to the system: freeing it takes a second."""
    code = error.code if isinstance(error, SystemExit) else 0 if error is None else 1
    if not isinstance(error, SystemExit | None):
        sys.excepthook(type(error), error, error.__traceback__)
    elif not isinstance(code, int | None):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 255)


def main() -> NoReturn:
    base_variables()
    for module in MODULES:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "threads do not survive a fork"
    try:
        become(*serve(socket.socket(fileno=int(sys.argv[1]))))
    except BaseException as error:
        end(error)
    end(None)


if __name__ == "__main__":
    main()
