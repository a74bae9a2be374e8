"""One run at a time in a folder, and no lock that outlives its run."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.commands import ROOT
from util import folder_lock as module
from util.errors import UserError
from util.folder_lock import folder_lock, lock_file


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file; what takes a minute takes a second."""
    monkeypatch.setattr(module, "SILENCE", 1.0)
    return lock_file(tmp_path, "training")


OTHER = """
import sys, time
from pathlib import Path
from util import folder_lock
folder_lock.BEAT = 0.05
with folder_lock.folder_lock(Path(sys.argv[1]), "training"):
    print("taken", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(lock: Path) -> Iterator[subprocess.Popen]:
    """Another process that has the lock, its seconds hundredths."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen([sys.executable, "-c", OTHER, lock.parent], **pipes) as process:
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def take(lock: Path) -> None:
    with folder_lock(lock.parent, "training"):
        assert lock.is_file() and not lock.is_symlink()


def refused(lock: Path, match: str) -> None:
    with pytest.raises(UserError, match=rf"is in use by another run \({match}"):
        take(lock)


def change(path: Path, count: int = 0, **owner: object) -> None:
    """Let the lock be somebody else's."""
    _, _, text = path.read_text().partition(" ")
    path.write_text(f"{count:012d} {json.dumps({**json.loads(text), **owner})}\n")


def test_a_second_run_of_the_kind_is_refused_while_the_first_lasts(lock: Path) -> None:
    with folder_lock(lock.parent, "training"), folder_lock(lock.parent, "evaluation"):
        refused(lock, rf"process {os.getpid()} on .+, since .+\), expected a folder")
        change(lock, began="1")  # a number that a later process has is no owner
        with folder_lock(lock.parent, "training"):
            assert module._read(lock)[0]["began"] != "1"
    assert not list(lock.parent.iterdir())


def test_a_lock_can_be_waited_for(lock: Path) -> None:
    taken = threading.Event()

    def wait() -> None:
        with folder_lock(lock.parent, "training", wait=True):
            taken.set()

    with folder_lock(lock.parent, "training"):
        threading.Thread(target=wait).start()
        assert not taken.wait(0.3)
    assert taken.wait(30)


def test_only_a_living_process_keeps_others_out(lock: Path, other: subprocess.Popen) -> None:
    in_use = f"process {other.pid} on "
    refused(lock, in_use)
    os.kill(other.pid, signal.SIGSTOP)  # however still it is
    refused(lock, in_use)
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # ended, and not waited for
    take(lock)


def test_an_owner_elsewhere_lives_if_counting(lock: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock.write_bytes(module._encode(module._describe_self(), 7))
    change(lock, 7, machine="elsewhere", host="node9")
    counts = threading.Timer(0.1, change, (lock, 8))
    counts.start()
    refused(lock, "process .* on node9")
    counts.join()
    caplog.clear()
    with caplog.at_level("INFO"), folder_lock(lock.parent, "training"):
        assert "node9" not in lock.read_text()
    assert caplog.text.count("watching for 1 s whether it lives") == 1


def test_a_damaged_lock_keeps_nobody_out(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.1)
    ours = module._describe_self()
    contents = [b"", b"000000000000 {", b"\xff\0", b"[]", b"0 " + b"[" * 100_000]
    for process in (None, "x", 0, -1, 10**30, 1.5e300):
        contents.append(module._encode({**ours, "process": process}, 0))
    contents.append(module._encode({name: ours[name] for name in ours if name != "began"}, 0))
    for content in contents:
        lock.write_bytes(content)
        take(lock)
    lock.symlink_to(lock.parent / "nowhere")
    take(lock)


def test_no_empty_lock_is_left_on_a_full_disk(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_encode", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        take(lock)
    assert not list(lock.parent.iterdir())


def test_a_run_that_lost_its_folder_ends_in_one_line(lock: Path, other: subprocess.Popen) -> None:
    change(lock, id="another", host="node9", process=5)
    _, stderr = other.communicate(timeout=60)
    assert other.returncode == 2
    taken = f"error: {lock.parent} was taken over by another run (process 5 on node9"
    assert stderr.startswith(taken) and stderr.count("\n") == 1
    assert "another" in lock.read_text()  # it is not its own to remove


def test_a_lock_counts_until_it_vanishes(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    with folder_lock(lock.parent, "training"):
        size, seen = lock.stat().st_size, {module._read(lock)[1]}
        while len(seen) < 3:
            seen.add(module._read(lock)[1])
        assert lock.stat().st_size == size
        lock.unlink()
    assert not list(lock.parent.iterdir())
