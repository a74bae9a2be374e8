"""Commands under way, to be killed or to end as they should."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dataset import write_cache
from tests.commands import start_command
from util.errors import EXIT_CODE, run

DEADLINE = 120.0


class Child:
    """A command, `main_lpd` or `main_cache`, whose output goes to the file `said`.

    With `shard_images`, `main_cache` makes shards of so many images.
    """

    def __init__(
        self, command: str, flags: list[object], said: Path, shard_images: int | None = None
    ) -> None:
        self._said, script = said, [f"{command}.py"]
        if shard_images is not None:
            script = ["-m", "tests.faults.children", shard_images]
        with said.open("wb") as output:
            self._run = start_command(*script, *flags, stdout=output, stderr=subprocess.STDOUT)
        self.signal = self._run.send_signal

    @property
    def running(self) -> bool:
        return self._run.poll() is None

    @property
    def code(self) -> int:
        """What it ends with."""
        return self._run.wait(DEADLINE)

    def kill(self) -> bool:
        """SIGKILL; whether that is what it ended by."""
        self._run.kill()
        return self.code == -signal.SIGKILL

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds or the command has ended."""
        deadline = time.monotonic() + DEADLINE
        while self.running and not condition():
            assert time.monotonic() < deadline, "nothing happens"
            time.sleep(0.0005)

    def succeeds(self) -> str:
        """What it said; it must end well."""
        return self._ends_with(0)

    def is_refused(self) -> str:
        """The one line that it ended in, with exit code 2 and without a traceback."""
        said = self._ends_with(EXIT_CODE)
        assert "Traceback" not in said, said
        (line,) = (line for line in said.splitlines() if line.startswith("error: "))
        assert said.endswith(line + "\n"), said
        return line

    def _ends_with(self, code: int) -> str:
        found, said = self.code, self._said.read_text(encoding="utf-8")
        assert found == code, said[-3000:]
        return said


if __name__ == "__main__":
    import main_cache

    write_cache.MAX_SHARD_IMAGES = int(sys.argv.pop(1))
    run(main_cache.main)
