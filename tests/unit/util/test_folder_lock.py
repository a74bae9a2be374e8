"""One run at a time in a folder, and no lock that outlives its run."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import ROOT
from util import folder_lock as module
from util.errors import UserError
from util.folder_lock import folder_lock, lock_file, require_free

REFUSED = rf"is in use by another run \(process {os.getpid()} on .+, since .+\), expected a folder"


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that has the lock, seconds in a hundredth of the usual time."""
    program = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from util import folder_lock
folder_lock.BEAT = 0.05
with folder_lock.folder_lock(Path({str(tmp_path)!r}), "training"):
    print("taken", flush=True)
    time.sleep(60)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 1.0)


def change(path: Path, count: int = 0, **owner: object) -> None:
    """Let the lock be somebody else's."""
    _, _, text = path.read_text().partition(" ")
    path.write_text(f"{count:012d} {json.dumps({**json.loads(text), **owner})}\n")


def test_a_second_run_of_the_kind_is_refused_while_the_first_lasts(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "training"), folder_lock(tmp_path, "evaluation"):
        with pytest.raises(UserError, match=REFUSED), folder_lock(tmp_path, "training"):
            pytest.fail("it was let in")
        assert lock_file(tmp_path, "training").exists()
    assert not list(tmp_path.iterdir())
    with folder_lock(tmp_path, "training"):
        pass


def test_a_living_process_keeps_others_out_and_a_killed_one_does_not(
    tmp_path: Path, other: subprocess.Popen
) -> None:
    in_use = f"is in use by another run .process {other.pid} on "
    with pytest.raises(UserError, match=in_use), folder_lock(tmp_path, "training"):
        pytest.fail("it was let in")
    os.kill(other.pid, signal.SIGSTOP)  # however still it is
    with pytest.raises(UserError, match=in_use), folder_lock(tmp_path, "training"):
        pytest.fail("it was let in")
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # ended, and not waited for
    with folder_lock(tmp_path, "training"):
        assert lock_file(tmp_path, "training").exists()


def test_a_number_that_a_later_process_has_is_no_owner(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "training"):
        path = lock_file(tmp_path, "training")
        change(path, began="1")
        with folder_lock(tmp_path, "training"):
            assert module._read(path)[0]["began"] != "1"


def test_an_owner_on_another_machine_lives_as_long_as_it_counts(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    path = lock_file(tmp_path, "training")
    with folder_lock(tmp_path, "training"):
        pass
    path.write_bytes(module._encode(module._describe_self(), 7))
    change(path, 7, machine="elsewhere", host="node9")
    ended = threading.Event()

    def count() -> None:
        number = 7
        while not ended.wait(0.1):
            number += 1
            change(path, number)

    owner = threading.Thread(target=count)
    owner.start()
    try:
        with (
            pytest.raises(UserError, match=r"in use by another run .* on node9"),
            folder_lock(tmp_path, "training"),
        ):
            pytest.fail("it was let in")
    finally:
        ended.set()
        owner.join()
    assert path.exists()
    caplog.clear()
    with caplog.at_level("INFO"), folder_lock(tmp_path, "training"):
        assert "node9" not in path.read_text()
    assert caplog.text.count("watching for 1 s whether it lives") == 1


def test_a_lock_that_is_cut_short_or_strange_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.1)
    path, ours = lock_file(tmp_path, "training"), module._describe_self()
    contents = [b"", b"000000000000 {", b"\xff\0", b"[]", b"0 " + b"[" * 100_000]
    for process in (None, "x", 0, -1, 10**30, 1.5e300):
        contents.append(module._encode({**ours, "process": process}, 0))
    contents.append(module._encode({name: ours[name] for name in ours if name != "began"}, 0))
    for content in contents:
        path.write_bytes(content)
        with folder_lock(tmp_path, "training"):
            pass
    path.symlink_to(tmp_path / "nowhere")
    with folder_lock(tmp_path, "training"):
        assert path.is_file() and not path.is_symlink()


def test_a_lock_is_seen_ahead_of_taking_it(tmp_path: Path, other: subprocess.Popen) -> None:
    require_free(tmp_path, "evaluation")
    with pytest.raises(UserError, match=f"in use by another run .process {other.pid} on "):
        require_free(tmp_path, "training")
    change(lock_file(tmp_path, "training"), machine="elsewhere")
    require_free(tmp_path, "training")  # which would take a minute to see


def test_no_empty_lock_is_left_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_encode", fill)
    with pytest.raises(OSError, match="No space"), folder_lock(tmp_path, "training"):
        pytest.fail("it was let in")
    assert not list(tmp_path.iterdir())


def test_a_run_that_lost_its_folder_ends_in_one_line(
    tmp_path: Path, other: subprocess.Popen
) -> None:
    path = lock_file(tmp_path, "training")
    change(path, id="another", host="node9", process=5)
    _, stderr = other.communicate(timeout=60)
    assert other.returncode == 2
    assert stderr.startswith(f"error: {tmp_path} was taken over by another run (process 5 on node9")
    assert stderr.count("\n") == 1
    assert "another" in path.read_text()  # it is not its own to remove


def test_the_counter_advances_and_a_lock_that_vanished_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    path = lock_file(tmp_path, "training")
    with folder_lock(tmp_path, "training"):
        size, seen = path.stat().st_size, {module._read(path)[1]}
        while len(seen) < 3:
            seen.add(module._read(path)[1])
        assert path.stat().st_size == size
        path.unlink()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), folder_lock(tmp_path / "missing", "training"):
        pytest.fail("it was let in")
