"""Start Python commands in no time: forked from a process that has imported what they import.

`python -m tests.warm FD FD` is that process: it waits at two sockets for what to become. At one
this module's `Popen` asks; at the other warm_client.py, which is `python` to a shell script.
"""

import atexit
import ctypes
import gc
import importlib
import inspect
import json
import os
import re
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping
from contextlib import suppress
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
# Variables that nothing reads before a command is under way, beside those of the shell scripts; any
# other takes a real start. How threads wait is nothing to commands of one thread.
READ_LATE = re.compile(
    r"((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+"
    r"|TORCH_(HOME|NCCL_ASYNC_ERROR_HANDLING)|HF_\w+|NO_PROXY|PYTEST_\w+|SLURM_\w+|INTERRUPTED_FILE"
    r"|PATH|PYTHON|OMP_WAIT_POLICY|(OLD)?PWD|SHLVL|_)"
)
PR_SET_CHILD_SUBREAPER = 36
LONGEST = 2**18  # bytes of a message
lock = threading.Lock()


class Popen(subprocess.Popen):
    """`subprocess.Popen` that forks a waiting process in place of a new one where it may."""

    def _execute_child(self, args: list[str], *rest: object) -> None:
        given = inspect.signature(super()._execute_child).bind(args, *rest).arguments
        variables = dict(given["env"] or os.environ)
        special = given["preexec_fn"] or given["pass_fds"]
        if special or not can_be_forked(args, variables):
            super()._execute_child(args, *rest)
            return
        pipes = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        request = {
            "arguments": args[2 if args[1] == "-u" else 1 :],
            "unbuffered": args[1] == "-u",
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
                pid = int(server().recv(LONGEST))
                server().recv(LONGEST)  # when it is a child of this process
                return pid
            finally:
                adopt(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def can_be_forked(args: list[str], variables: dict[str, str]) -> bool:
    """Whether a fork would be what a start is."""
    python, *words = args
    if words[:1] == ["-u"]:
        del words[0]
    own = base_variables()
    changed = [name for name in {*own, *variables} if own.get(name) != variables.get(name)]
    return (
        (python, sys.platform) == (sys.executable, "linux")
        and len(words) > 0
        and (words[0] in ("-c", "-m") or not words[0].startswith("-"))
        and all(READ_LATE.fullmatch(name) or name in script_variables() for name in changed)
    )


@cache
def script_variables() -> set[str]:
    """What the shell scripts may be given, but for the number of threads."""
    files = [file for part in ("orders", "scripts") for file in (ROOT / part).rglob("*.sh")]
    text = "".join(file.read_text() for file in files)
    return set(re.findall(r"\$\{(\w+):?-", text)) - {"OMP_NUM_THREADS"}


@cache
def base_variables() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}


@cache
def server() -> socket.socket:
    """The end of the socket at which the process waits."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    calls = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    calls.bind(str(client().with_name("socket")))
    calls.listen()
    numbers = [theirs.fileno(), calls.fileno()]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm", *map(str, numbers)],
        cwd=ROOT,
        env=base_variables(),
        pass_fds=numbers,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the tests
    )
    theirs.close()
    calls.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


@cache
def client() -> Path:
    """The program that is `python` to a shell script."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    program, code = folder / "python", ROOT / "tests" / "warm_client.py"
    line = shlex.join([sys.executable, "-IS", str(code), str(folder / "socket")])
    program.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
    program.chmod(0o755)
    return program


def serve(waiting: socket.socket, calls: socket.socket) -> tuple[dict, list[int]]:
    """Fork for each request; return in the new process, with what it is to become."""
    while True:
        with suppress(ChildProcessError):  # those that end with a client's process
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if waiting in select.select([waiting, calls], [], [])[0]:
            asks = waiting
        else:
            asks, _ = calls.accept()
        text, descriptors, *_ = socket.recv_fds(asks, LONGEST, 3)
        if not text and asks is waiting:
            os._exit(0)
        request = json.loads(text or "{}")
        asked = [sys.executable, *request.get("arguments", [])]
        if asks is not waiting and not can_be_forked(asked, request.get("variables", {})):
            asks.send(b"0")
        elif (between := os.fork()) == 0:
            if child := os.fork():
                asks.send(str(child).encode())
                if asks is not waiting:
                    look_after(child, asks)
                os._exit(0)  # so that the child becomes one of who asked
            for end in (waiting, calls, asks):
                end.close()
            return request, descriptors
        elif asks is waiting:
            os.waitpid(between, 0)
            asks.send(b"adopted")
        for descriptor in descriptors:
            os.close(descriptor)
        if asks is not waiting:
            asks.close()


def look_after(child: int, client: socket.socket) -> None:
    """Tell a client how the process ended that it is, which must end with it."""
    if client in select.select([client, os.pidfd_open(child)], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        client.send(str(code).encode())


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
    if "client" in request:
        sys.executable = os.environ.get("PYTHON", sys.executable)  # so are those that it starts
    first, *more = request["arguments"]
    if first == "-c":
        code, *more = more
        sys.argv, sys.path[0] = ["-c", *more], ""
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), vars(main))  # noqa: S102 (as `python -c`)
    elif first == "-m":
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
    words = " ".join(arguments).replace("=", " ").split()
    count = int(words[words.index("--nproc_per_node") + 1])
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
        trace, ours = error.__traceback__, (__file__, runpy.run_path.__code__.co_filename)
        while trace is not None and trace.tb_frame.f_code.co_filename in ours:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
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
        become(*serve(*(socket.socket(fileno=int(number)) for number in sys.argv[1:])))
    except BaseException as error:
        end(error)
    end(None)


if __name__ == "__main__":
    main()
