"""What a run was: its whole command, versions, git revision and log, kept beside its output."""

import argparse
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from util import logs
from util.files import replacing

RECORD_FILE = "commands.sh"
# Libraries whose version can change a number.
_LIBRARIES = ("torch", "torchvision", "numpy", "timm", "pillow", "torch-fidelity")
_ROOT = Path(__file__).resolve().parents[1]


def record_run(
    parser: argparse.ArgumentParser, args: argparse.Namespace, folder: str | Path
) -> None:
    """Add a run, with its flags, to `commands.sh` in its output folder, on rank 0; log there, too.

    Each start adds a block: comments, and a command that can be pasted.
    """
    if not logs.is_main_process():
        return
    when = datetime.now().astimezone().isoformat(timespec="seconds")
    script, here = Path(sys.argv[0]).resolve(), Path.cwd()
    if script.is_relative_to(here):
        script = script.relative_to(here)
    parts = [[*launcher(), str(script)], *flags_of(parser, args)]
    command = " \\\n    ".join(map(shlex.join, parts))
    where = f"{platform.node()}, in {str(here)!r}"
    block = f"# {when} on {where}, {revision()}\n# {versions()}\n{command}\n\n"
    path = Path(folder) / RECORD_FILE
    earlier = path.read_bytes() if path.exists() else b""
    # A new file each time: a shell that runs this one must not find a run's own block at its end.
    with replacing(path, durable=False) as temporary:
        temporary.write_bytes(earlier + os.fsencode(block))  # names of files may be any bytes
    logs.keep(folder)


def flags_of(
    parser: argparse.ArgumentParser, args: argparse.Namespace, defaults: bool = True
) -> list[list[str]]:
    """List each flag, with its values, that makes the parser return `args`; positional ones first.

    `defaults`: also those whose value is the default of this version.
    """
    positional: list[str] = []
    flags: list[list[str]] = []
    for action in parser._actions:
        value, default = getattr(args, action.dest, None), parser.get_default(action.dest)
        unsaid = value == default and not defaults
        if value is None or unsaid or isinstance(action, argparse._HelpAction):
            continue
        values = list(map(str, value if isinstance(value, list | tuple) else [value]))
        if not action.option_strings:
            positional += values
            continue
        flag = action.option_strings[0]
        if isinstance(action, argparse.BooleanOptionalAction):
            flags.append([action.option_strings[0 if value else 1]])
        elif action.nargs == 0:  # a switch: the one that sets this value
            if value == action.const and value != default:
                flags.append([flag])
        elif len(values) != 1 or not values[0].startswith("-"):
            flags.append([flag, *values])
        else:  # what looks like another flag must be joined to it
            flags.append([f"{flag}={values[0]}"])
    return [positional, *flags] if positional else flags


def launcher() -> list[str]:
    """Say what starts as many processes as there are."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["python"]
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    nodes = ["--nnodes", str(world // local)] if world > local else ["--standalone"]
    return ["torchrun", *nodes, "--nproc_per_node", str(local)]


def revision() -> str:
    """Say the git revision of this code, and whether its files differ from it."""
    git = ["git", "-C", str(_ROOT)]
    # Studies write their results to docs/.
    status = [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs"]
    try:
        commit, changed = (
            subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
            for command in ([*git, "rev-parse", "HEAD"], status)
        )
    except (OSError, subprocess.SubprocessError):
        return "git revision unknown"
    return f"git {commit.strip()}" + (" with changes" if changed else "")


def versions() -> str:
    """List the versions of Python and of the libraries that compute."""
    parts = [f"python {platform.python_version()}"]
    for name in _LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            parts.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(parts)
