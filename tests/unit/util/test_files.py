import os
from pathlib import Path

import pytest

from util.files import open_file, replacing


def test_data_are_on_the_disk_before_the_name_is_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        order.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        order.append(f"rename to {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    with replacing(file, durable=False) as temporary:  # a file that may be lost
        temporary.write_text("old")
    assert order == ["rename to file"]
    order.clear()
    with replacing(file, previous=file.with_name("before")) as temporary:
        temporary.write_text("new")
        assert not order
    assert order == ["fsync .file.part", "rename to before", "rename to file", "fsync folder"]
    assert (file.read_text(), file.with_name("before").read_text()) == ("new", "old")


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
