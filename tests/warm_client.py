"""`python -IS warm_client.py SOCKET ...` is `python ...`, by a process that tests/warm.py forks."""

import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

_, address, *arguments = sys.argv
request = {
    "arguments": arguments[arguments[:1] == ["-u"] :],
    "unbuffered": "-u" in arguments[:1],
    "variables": dict(os.environ),
    "folder": str(Path.cwd()),
    "new_session": True,
    "client": True,
}
open_files = list(Path("/proc/self/fd").iterdir())  # among them that of the listing, closed since
if any(int(file.name) > 2 and file.exists() for file in open_files):  # handed on, for whom?
    os.execv(sys.executable, [sys.executable, *arguments])
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect(address)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until it is known who is to get them
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    pid = int(server.recv(99))
    for number in SIGNALS if pid else ():
        signal.signal(number, lambda number, _: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if pid == 0:  # it cannot
        os.execv(sys.executable, [sys.executable, *arguments])
    code = int(server.recv(99))
if code < 0:
    with suppress(OSError):  # SIGKILL has no handler
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
