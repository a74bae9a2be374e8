import os
from pathlib import Path

import pytest

from util.files import replacing


def test_data_are_on_the_disk_before_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
