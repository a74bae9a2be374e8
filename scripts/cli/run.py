"""Run a command on the nodes of a Slurm cluster until it has finished.

python scripts/cli/run.py -J NAME -p PARTITION -A ACCOUNT -N 4 bash scripts/train/lpd_l_256.sh

The command runs once on each node. A job that its time limit or a preemption has interrupted goes
on, a failed one is tried again.
"""

import argparse
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.cli.supervisor import supervise
from util.cli import Parser, add_flags, whole
from util.errors import UserError, blame, require_writable_folder, run
from util.files import replacing
from util.signals import MARKER, MARKER_VARIABLE

logger = logging.getLogger("lpd")


def build_parser() -> Parser:
    """Declare all flags, and the command."""
    parser = Parser(
        usage="%(prog)s -J NAME [flags] COMMAND ...",
        description="Run a command on the nodes of a Slurm cluster until it has finished.",
    )
    add = parser.add_argument_group("what of the cluster").add_argument
    add("-J", "--job-name", required=True, metavar="NAME")
    add("-p", "--partition", help="by default the cluster's")
    add("-A", "--account", help="by default the user's")
    add("-N", "--nodes", type=whole(1), default=1)
    add("--gpus-per-node", type=whole(0), default=8, help="0 asks for none")
    add("-t", "--time", help="limit of one start, H:M:S; by default the partition's")
    yes_or_no, about = argparse.BooleanOptionalAction, "ask for whole nodes (the default)"
    add("--exclusive", action=yes_or_no, default=True, help=about)
    about = "more flags for Slurm, for example --slurm-args='--qos=long --mem=0'"
    add("--slurm-args", default="", metavar="FLAGS", help=about)
    job = parser.add_argument_group("how the job runs")
    add = job.add_argument
    add("--mode", default="train", help="names the default output folder")
    about = "folder of the run, its logs in logs/; the command finds it in the variable OUTPUT_DIR;"
    add("--output-dir", help=f"{about} by default runs/MODE/NAME")
    about = "how long before its time limit the job is asked to save; Slurm: up to a minute earlier"
    add("--warn-seconds", type=whole(1, 65535), default=120, help=about)
    add("--max-retry", type=whole(0), default=3, help="failures in a row that are tried again")
    add("--batch", action="store_true", help="queue the job with sbatch and return")
    add("--pty", action="store_true", help="a terminal on the first node; one start")
    add("--dry-run", action="store_true", help="print Slurm's line and do nothing")
    add_flags(job, "--debug")
    add("--supervise", action="store_true", help=argparse.SUPPRESS)  # what a batch job runs
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run on each node")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Start the job and stay until it has finished, or queue it, or say how it would be started."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(argv)
    own_flags = argv[: len(argv) - len(args.command)]
    settle(args)
    folder = args.output_dir / "logs"
    own = {"RUN_NAME": args.job_name, "OUTPUT_DIR": str(args.output_dir)}
    own[MARKER_VARIABLE] = str(args.output_dir / MARKER)
    # Python: or every node would set up the environment, all at once.
    environment = {"PYTHON": sys.executable, **os.environ, **own}
    # One task on each node: torchrun starts the processes there.
    tasks = [f"--nodes={args.nodes}", f"--ntasks={args.nodes}", "--ntasks-per-node=1"]
    # Unbuffered, or progress bars, which end no line, would not be seen. When the first node of
    # several has ended, the others get a minute to end too.
    step = [*tasks, *(["--pty"] if args.pty else ["--wait=60", "--unbuffered"]), *args.command]
    if args.supervise:
        number = os.environ.get("SLURM_JOB_ID")
        if number is None:
            raise UserError("--supervise: found no job of Slurm around it, expected --batch")
        sys.exit(supervise(["srun", *step], args.output_dir, environment, args.max_retry, number))
    asked = {"job-name": args.job_name, "partition": args.partition, "account": args.account}
    asked |= {"time": args.time, "gpus-per-node": args.gpus_per_node or None}
    asked = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    # The signal goes to the processes of the command, not to the batch script.
    warning = f"--signal=USR1@{args.warn_seconds}"
    asked += [*["--exclusive"] * args.exclusive, warning, *args.slurm_args]
    line = ["srun", *asked, *step]
    if args.batch:
        # In Slurm's patterns of file names % begins a replacement. Started again when preempted.
        log = "--output=" + str(folder).replace("%", "%%") + "/job-%j.log"
        how = ["--requeue", "--open-mode=append", log, str(folder / "job.sh")]
        line = ["sbatch", "--parsable", *asked, *tasks, *how]
    if args.dry_run:
        sys.stdout.write(shlex.join(line) + "\n")
        return
    if shutil.which(line[0]) is None:
        raise UserError(
            f"{line[0]}: not found, expected Slurm's commands on the PATH; without Slurm run "
            f"the command itself: {shlex.join(args.command)}"
        )
    require_writable_folder(folder, "--output-dir")
    logger.info("logs: %s", folder)
    if args.pty:
        sys.exit(subprocess.run(line, env=environment, check=False).returncode)
    if not args.batch:
        sys.exit(supervise(line, args.output_dir, environment, args.max_retry))
    # The batch script is this command again, supervising instead of submitting.
    script = ["--supervise", *(flag for flag in own_flags if flag != "--batch")]
    script += ["--output-dir", str(args.output_dir), "--", *args.command]
    submit(line, script, environment)


def settle(args: argparse.Namespace) -> None:
    """Refuse what cannot be or does not go together; make `output_dir` absolute, split words."""
    args.command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not args.command:
        raise UserError("COMMAND: not given, expected what to run, for example: bash my_script.sh")
    for flag, name in (("-J/--job-name", args.job_name), ("--mode", args.mode)):
        if not re.fullmatch(r"\w[\w.+:=@-]*", name):  # part of a file name
            raise UserError(f"{flag}: found {name!r}, expected letters, digits and .+:=@_-")
    with blame(f"--slurm-args: found {args.slurm_args!r}"):
        args.slurm_args = shlex.split(args.slurm_args)
    if args.time is not None:
        limit = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", args.time)
        if limit is None:
            raise UserError(f"-t/--time: found {args.time!r}, expected minutes, H:M:S or D-H:M:S")
        days, *clock = map(int, limit.groups(default=0))
        if limit[1] is None and limit[4] is None:  # minutes, or minutes and seconds
            clock = [0, *clock[:2]]
        seconds = ((24 * days + clock[0]) * 60 + clock[1]) * 60 + clock[2]
        # Slurm rounds up to minutes.
        if -(-seconds // 60) * 60 <= args.warn_seconds:
            found = f"found {args.warn_seconds} with a time limit of {args.time}"
            raise UserError(f"--warn-seconds: {found}, expected less than the limit")
    if args.pty and args.batch:
        raise UserError("--pty: found --batch too, expected one of the two")
    args.output_dir = Path(args.output_dir or f"runs/{args.mode}/{args.job_name}").absolute()


def submit(line: Sequence[str], arguments: Sequence[str], environment: dict[str, str]) -> None:
    """Write the batch script, the last word of `line`: this command with `arguments`; queue it."""
    script = Path(line[-1])
    command = shlex.join([sys.executable, str(Path(__file__).resolve()), *arguments])
    with blame("--output-dir"), replacing(script) as temporary:
        temporary.write_text(f"#!/usr/bin/env bash\n# Written by run.py --batch.\nexec {command}\n")
    result = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise UserError(result.stderr)
    number = result.stdout.strip().partition(";")[0]
    logger.info("queued as job %s; its log: %s", number, script.with_name(f"job-{number}.log"))
    sys.stdout.write(number + "\n")


if __name__ == "__main__":
    run(main)
