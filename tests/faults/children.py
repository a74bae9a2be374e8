"""This project's commands in real processes that start in no time.

They are forked from a process that has imported everything and done nothing: a fresh interpreter
takes seconds, and there are many to be killed.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from dataset import write_cache as cache_writer
from util import errors

COMMANDS = ("main_lpd", "main_cache")
DEADLINE = 120.0


class Child:
    """A command under way.

    Args:
        command: one of `COMMANDS`.
        flags: its command line.
        said: the file that its output goes to.
        shard_images: instead of `cache_writer.MAX_SHARD_IMAGES`, for caches of several shards.
    """

    def __init__(
        self, command: str, flags: list[str], said: Path, shard_images: int | None = None
    ) -> None:
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(list(COMMANDS))
        self._said = said
        self._process: BaseProcess = server.Process(
            target=_run, args=(command, flags, said, shard_images)
        )
        self._process.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.exitcode is None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self._process.pid, number)

    def kill(self) -> bool:
        """SIGKILL; whether that is what it ended by."""
        self._process.kill()
        return self.code == -signal.SIGKILL

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds or the command has ended."""
        deadline = time.monotonic() + DEADLINE
        while self.running and not condition():
            assert time.monotonic() < deadline, "nothing happens"
            time.sleep(0.0005)

    @property
    def code(self) -> int:
        """What it ended with."""
        self._process.join(DEADLINE)
        assert self._process.exitcode is not None, "it does not end"
        return self._process.exitcode

    def succeeds(self) -> str:
        """What it said; it must end well."""
        return self._ends_with(0)

    def is_refused(self) -> str:
        """The one line that it ended in, with exit code 2 and without a traceback."""
        said = self._ends_with(errors.EXIT_CODE)
        assert "Traceback" not in said, said
        (line,) = (line for line in said.splitlines() if line.startswith("error: "))
        assert said.endswith(line + "\n"), said
        return line

    def _ends_with(self, code: int) -> str:
        found, said = self.code, self._said.read_text(encoding="utf-8")
        assert found == code, said[-3000:]
        return said


def _run(command: str, flags: list[str], said: Path, shard_images: int | None) -> None:
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    if shard_images is not None:
        cache_writer.MAX_SHARD_IMAGES = shard_images
    sys.argv = [f"{command}.py", *flags]
    errors.run(importlib.import_module(command).main)
