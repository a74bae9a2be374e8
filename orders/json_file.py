"""Reading small JSON files whose mistakes should be reported in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from util.files import open_file


def read_json(path: str | Path) -> Any:
    """The value a JSON file holds.

    Raises:
        ValueError: the file is not JSON; says where it stops being so.
        OSError: the file cannot be read.
    """
    try:
        with open_file(path) as stream:
            content = stream.read()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged JSON at character {error.pos}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, too deep or absurdly long numbers
        raise ValueError(f"{path}: {error}, expected JSON text") from error
