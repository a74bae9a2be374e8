"""What a GPU does with this code, in one call of under nine minutes: see scripts/gpu_check.sh.

Each part runs in a process of its own, with a time limit of its own: one that fails or hangs costs
its own figures only. They are written after every part; a short table comes last.
"""

import argparse
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import Parser, add_flags, number
from util.errors import UserError, require_writable_file, run
from util.files import write_json

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]

# Seconds that each part may take of 540; the tests, which disturb timings, come last.
LIMITS = dict(device=30, latency=105, tokens=60, throughput=75, training=145)
LIMITS |= dict(variants=80, tests=220)
# Of them, seconds to end in when asked to.
GRACE = 10.0
STOPPED = "stopped by a signal"
# Of a part in the table, which has 60 lines at most, and letters of a line.
LINES, WIDTH = 8, 118
# Those of graphs and VQ decoder first.
TESTS = (
    "tests/unit/models/test_cuda_graphs.py",
    "tests/unit/tokenizers/test_fast_decoder.py",
    "tests/unit/models/test_fast_path.py",
    "tests/unit/models/test_compiled_training.py",
    "tests/golden/test_lpd.py",
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="What a GPU does with this code.")
    add_flags(parser, "--device")
    parser.add_argument("--quick", action="store_true", help="a tiny network, few calls")
    parser.add_argument("--seconds", type=number(), default=540.0, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=LIMITS, default=[*LIMITS], help="which ones")
    folder = Path(os.environ.get("OUT", "output"))
    add_flags(parser, "--output", default=folder / "gpu_check.json")
    parser.add_argument("--measure", choices=[*LIMITS][:-1], help="one part, in this process")
    add_flags(parser, "--debug")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Run the parts one after another, keep what they find, and show it."""
    if args.measure:
        from scripts import gpu_parts  # needs seconds to import

        raise SystemExit(gpu_parts.measure(args))
    require_writable_file(args.output, "--output")
    if args.device != "cpu" and not torch.cuda.is_available():
        expected = "but no usable GPU, expected --device cpu here"
        raise UserError(f"--device: found {args.device!r} {expected}")
    # So that no part is left behind. Shells start what runs in the background without SIGINT, and
    # the parts would be without it, too.
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.default_int_handler)
    ends = time.monotonic() + args.seconds
    parts: dict[str, dict[str, Any]] = {}
    for name in [name for name in LIMITS if name in args.parts]:
        limit = min(LIMITS[name] * args.seconds / 540, ends - time.monotonic())
        parts[name] = run_part(name, max(limit - GRACE, 0), args)
        failed = parts[name]["failed"]
        logger.info("%s: %s, %.0f s", name, failed or "done", parts[name]["seconds"])
        write_json({"command": sys.argv, "parts": parts}, args.output)
        if failed and failed.startswith(STOPPED):
            break
    sys.stdout.write("\n".join(table(parts)) + "\n")
    if any(part["failed"] for part in parts.values()):
        raise SystemExit(1)


def run_part(name: str, limit: float, args: argparse.Namespace) -> dict[str, Any]:
    """Return a part's figures as far as it came, why it failed (None if not) and its seconds."""
    result, log = (Path(f"{args.output.resolve()}.{name}{end}") for end in ("", ".log"))
    result.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--measure", name, "--device", args.device]
    command += ["--output", str(result), *(["--quick"] if args.quick else [])]
    if name == "tests":
        command = [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "-k", "cuda"]
        command += ["--maxfail", "20", *(TESTS[:1] if args.quick else TESTS)]
        if importlib.util.find_spec("xdist") and not args.quick:
            command += ["-n", "4", "--dist", "worksteal"]
        if importlib.util.find_spec("pytest_timeout"):
            command += ["--timeout", "120"]
    failed, started = None, time.monotonic()
    with log.open("wb") as file:
        options = dict(cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        process = subprocess.Popen(command, **options)
        try:
            if code := process.wait(timeout=limit):
                failed = f"exit code {code}"
        except subprocess.TimeoutExpired:
            failed = f"not done after {limit:.0f} s"
        except KeyboardInterrupt:
            failed = STOPPED
        # What it started ends, too; on SIGINT pytest says what has failed so far.
        for ending in (signal.SIGINT, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, ending)
                process.wait(timeout=GRACE)
    said = log.read_text(errors="replace").strip().splitlines()
    found = {"figures": {}, "errors": []}
    if result.exists():
        found = json.loads(result.read_text())
        result.unlink()
    elif name == "tests":
        found["figures"]["ended"] = "".join(said[-1:]).strip("= ")
        found["errors"] = [line for line in said if line.startswith(("FAILED ", "ERROR "))]
    if failed:
        failed = "; ".join([failed, *(found["errors"] or said[-1:])])
    return {"failed": failed, "seconds": round(time.monotonic() - started, 1), **found}


def table(parts: dict[str, dict[str, Any]]) -> list[str]:
    """Return what the parts found in short."""
    lines = []
    for name, part in parts.items():
        end = f"FAILED: {part['failed']}" if part["failed"] else "ok"
        figures = (
            f"{key} {x:.4g}" if isinstance(x, float) else f"{key} {x}"
            for key, x in part["figures"].items()
        )
        found = textwrap.wrap(", ".join(figures), WIDTH - 2)[: LINES - 1]
        lines.append(textwrap.shorten(f"{name} ({part['seconds']:.0f} s): {end}", WIDTH))
        lines += [f"  {line}" for line in found]
    return lines


if __name__ == "__main__":
    run(lambda: main(parse_args()))
