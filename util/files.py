"""Files that are either there in full or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` if the block succeeds, else goes.

    So a reader sees the old file or the whole new one.

    Args:
        path: the file to write.
        durable: bring the data to the disk before the name, so that not even a power cut leaves
            an empty file; too slow for very many small ones.
    """
    path = Path(path)
    # A fixed name: what a killed process leaves behind, the next write of the file replaces.
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(values: Mapping[str, Any], path: str | Path) -> None:
    """Write a readable JSON file."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")
