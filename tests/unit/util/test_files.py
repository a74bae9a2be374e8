"""Files are there in full or not, on the disk before they have their name; pipes are no files."""

import os
from pathlib import Path

import pytest

from util.files import open_file, replacing


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is brought to the disk and what gets its name, in order."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append(f"fsync {path.name}")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        steps.append(f"rename to {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    return steps


def test_data_are_on_the_disk_before_the_name_is_and_the_name_before_the_end(
    tmp_path: Path, order: list[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("old")
    with replacing(folder / "file", previous=folder / "before") as temporary:
        temporary.write_text("new")
        assert not order
    assert order == ["fsync .file.part", "rename to before", "rename to file", "fsync folder"]
    assert (folder / "file").read_text() == "new"
    assert (folder / "before").read_text() == "old"


def test_files_that_may_be_lost_are_not_waited_for(tmp_path: Path, order: list[str]) -> None:
    with replacing(tmp_path / "image", durable=False) as temporary:
        temporary.write_text("new")
    assert order == ["rename to image"]


def test_only_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_file(tmp_path / name) as stream:
            assert stream.read() == b"content"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(ValueError, match="^is a pipe, a folder or a device, expected a file$"):
            open_file(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        open_file(tmp_path / "missing")
