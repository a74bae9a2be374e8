"""Run a command on the nodes of a Slurm cluster until it has finished.

python scripts/cli/run.py -J NAME -p PARTITION -A ACCOUNT -N 4 bash scripts/train/lpd_l_256.sh

The command runs once on each node. A job that its time limit or a preemption has interrupted goes
on, a failed one is tried again.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.cli.supervisor import Supervisor
from util import logs
from util.cli import Parser, add_flags, whole
from util.errors import UserError, blame, require_writable_folder, run
from util.files import replacing
from util.signals import MARKER, MARKER_VARIABLE

logger = logging.getLogger("lpd")

RUN = Path(__file__).resolve().with_name("run.py")
# When the first node of several has ended, the others get so long to end too.
STRAGGLER_SECONDS = 60

_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<day_hours>\d+)(?::(?P<day_minutes>\d+)(?::(?P<day_seconds>\d+))?)?"
    r"|(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d+)|(?P<only_minutes>\d+))"
)


@dataclass(frozen=True)
class Job:
    """What to run, and with what of the cluster.

    Attributes:
        name: of the job.
        command: program and arguments, started once on each node.
        nodes: how many.
        gpus_per_node: 0 asks for none.
        output_dir: absolute; of the run's checkpoints and logs.
        partition: None for the cluster's default.
        account: None for the user's default.
        time_limit: as Slurm writes it; None for the partition's.
        warn_seconds: how long before the time limit the job gets SIGUSR1.
        exclusive: ask for whole nodes.
        slurm_args: more flags for Slurm.
        pty: give the first task a terminal.
    """

    name: str
    command: tuple[str, ...]
    nodes: int
    gpus_per_node: int
    output_dir: Path
    partition: str | None = None
    account: str | None = None
    time_limit: str | None = None
    warn_seconds: int = 120
    exclusive: bool = True
    slurm_args: tuple[str, ...] = ()
    pty: bool = False

    @property
    def logs(self) -> Path:
        """The folder of everything that the job prints."""
        return self.output_dir / "logs"


def srun_line(job: Job) -> list[str]:
    """`srun` that asks for nodes, runs the command on them and stays until it has ended."""
    return ["srun", *_allocation_flags(job), *_step_flags(job), *job.command]


def step_line(job: Job) -> list[str]:
    """`srun` inside a batch job, whose nodes it uses."""
    return ["srun", *_step_flags(job), *job.command]


def sbatch_line(job: Job, script: Path) -> list[str]:
    """`sbatch` that queues `script`, to be started again when it is preempted."""
    flags = [
        *_allocation_flags(job),
        *_task_flags(job),
        "--requeue",
        "--open-mode=append",
        f"--output={_escape(job.logs)}/job-%j.log",
    ]
    return ["sbatch", "--parsable", *flags, str(script)]


def batch_script(arguments: Sequence[str]) -> str:
    """The script of a batch job: this command again, supervising instead of submitting.

    Args:
        arguments: of the command that submits it.
    """
    line = shlex.join([sys.executable, str(RUN), "--supervise", *arguments])
    return f"#!/usr/bin/env bash\n# Written by {RUN.name} --batch.\nexec {line}\n"


def time_limit_seconds(text: str) -> int:
    """Length of a time limit, rounded up to minutes as Slurm does.

    Args:
        text: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        ValueError: it is none of these.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"found {text!r}, expected minutes, H:M:S or D-H:M:S")
    part = {name: int(value or 0) for name, value in match.groupdict().items()}
    hours = 24 * part["days"] + part["day_hours"] + part["hours"]
    minutes = 60 * hours + part["day_minutes"] + part["minutes"] + part["only_minutes"]
    seconds = 60 * minutes + part["day_seconds"] + part["seconds"]
    if seconds == 0:
        raise ValueError(f"found {text!r}, expected more than nothing")
    return -(-seconds // 60) * 60


def time_limit(text: str) -> str:
    """The type of a flag that takes a time limit."""
    try:
        time_limit_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _allocation_flags(job: Job) -> list[str]:
    """What the job asks of the cluster."""
    named = {
        "partition": job.partition,
        "account": job.account,
        "time": job.time_limit,
        "gpus-per-node": job.gpus_per_node or None,
    }
    flags = [f"--job-name={job.name}"]
    flags += [f"--{name}={value}" for name, value in named.items() if value is not None]
    if job.exclusive:
        flags.append("--exclusive")
    # To the processes of the command, not to the batch script.
    flags.append(f"--signal=USR1@{job.warn_seconds}")
    return [*flags, *job.slurm_args]


def _task_flags(job: Job) -> list[str]:
    """One task on each node: torchrun starts the processes there."""
    return [f"--nodes={job.nodes}", f"--ntasks={job.nodes}", "--ntasks-per-node=1"]


def _step_flags(job: Job) -> list[str]:
    if job.pty:
        return [*_task_flags(job), "--pty"]
    # Unbuffered, or progress bars, which end no line, would not be seen.
    return [*_task_flags(job), f"--wait={STRAGGLER_SECONDS}", "--unbuffered"]


def _escape(path: Path) -> str:
    """A folder in one of Slurm's file-name patterns, in which % begins a replacement."""
    return str(path).replace("%", "%%")


def build_parser() -> Parser:
    parser = Parser(
        usage="%(prog)s -J NAME [flags] COMMAND ...",
        description="Run a command on the nodes of a Slurm cluster until it has finished.",
    )
    cluster = parser.add_argument_group("what of the cluster")
    cluster.add_argument("-J", "--job-name", type=plain_name, required=True, metavar="NAME")
    cluster.add_argument("-p", "--partition", help="by default the cluster's")
    cluster.add_argument("-A", "--account", help="by default the user's")
    cluster.add_argument("-N", "--nodes", type=whole(1), default=1)
    cluster.add_argument("--gpus-per-node", type=whole(0), default=8, help="0 asks for none")
    cluster.add_argument(
        "-t",
        "--time",
        type=time_limit,
        help="limit of one start, H:M:S; by default the partition's",
    )
    cluster.add_argument(
        "--exclusive",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask for whole nodes (the default)",
    )
    cluster.add_argument(
        "--slurm-args",
        type=words,
        default=(),
        metavar="FLAGS",
        help="more flags for Slurm, for example --slurm-args='--qos=long --mem=0'",
    )
    job = parser.add_argument_group("how the job runs")
    job.add_argument(
        "--mode", type=plain_name, default="train", help="names the default output folder"
    )
    job.add_argument(
        "--output-dir",
        help="folder of the run, its logs in logs/; the command finds it in the variable "
        "OUTPUT_DIR; by default runs/MODE/NAME",
    )
    job.add_argument(
        "--warn-seconds",
        type=whole(1, 65535),
        default=120,
        help="how long before its time limit the job is asked to save; Slurm may ask a minute "
        "earlier",
    )
    job.add_argument(
        "--max-retry", type=whole(0), default=3, help="failures in a row that are tried again"
    )
    job.add_argument("--batch", action="store_true", help="queue the job with sbatch and return")
    job.add_argument("--pty", action="store_true", help="a terminal on the first node; one start")
    job.add_argument("--dry-run", action="store_true", help="print Slurm's line and do nothing")
    add_flags(job, "--debug")
    # What a batch job runs.
    job.add_argument("--supervise", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run on each node")
    return parser


def plain_name(text: str) -> str:
    """The type of a flag whose value is part of a file name."""
    if not re.fullmatch(r"\w[\w.+:=@-]*", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected letters, digits and .+:=@_-")
    return text


def words(text: str) -> tuple[str, ...]:
    """The type of a flag that takes several words, quoted as in a shell."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"found {text!r}: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(argv)
    logs.setup()
    job = read_job(args)
    if args.supervise:
        sys.exit(supervise_batch_job(job, args.max_retry))
    script = job.logs / "job.sh"
    line = sbatch_line(job, script) if args.batch else srun_line(job)
    if args.dry_run:
        sys.stdout.write(shlex.join(line) + "\n")
        return
    if shutil.which(line[0]) is None:
        raise UserError(
            f"{line[0]}: not found, expected Slurm's commands on the PATH; without Slurm run "
            f"the command itself: {shlex.join(job.command)}"
        )
    require_writable_folder(job.logs, "--output-dir")
    logger.info("logs: %s", job.logs)
    if args.pty:
        sys.exit(subprocess.run(line, env=job_environment(job), check=False).returncode)
    if args.batch:
        own_flags = argv[: len(argv) - len(args.command)]
        submit(job, line, script, own_flags)
        return
    supervisor = Supervisor(line, job.output_dir, job.logs, job_environment(job), args.max_retry)
    sys.exit(supervisor.run())


def read_job(args: argparse.Namespace) -> Job:
    """The job that the flags describe.

    Raises:
        UserError: flags that do not go together, or no command.
    """
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UserError("COMMAND: not given, expected what to run, for example: bash my_script.sh")
    if args.time is not None and time_limit_seconds(args.time) <= args.warn_seconds:
        raise UserError(
            f"--warn-seconds: found {args.warn_seconds} with a time limit of {args.time}, "
            "expected less than the limit"
        )
    if args.pty and args.batch:
        raise UserError("--pty: found --batch too, expected one of the two")
    output_dir = args.output_dir or Path("runs") / args.mode / args.job_name
    return Job(
        name=args.job_name,
        command=tuple(command),
        nodes=args.nodes,
        gpus_per_node=args.gpus_per_node,
        output_dir=Path(output_dir).absolute(),
        partition=args.partition,
        account=args.account,
        time_limit=args.time,
        warn_seconds=args.warn_seconds,
        exclusive=args.exclusive,
        slurm_args=args.slurm_args,
        pty=args.pty,
    )


def job_environment(job: Job) -> dict[str, str]:
    """Variables of the job's processes: this command's, the run's folder and this Python."""
    own = {"RUN_NAME": job.name, "OUTPUT_DIR": str(job.output_dir)}
    own[MARKER_VARIABLE] = str(job.output_dir / MARKER)
    # Or every node would set up the environment, all at once.
    return {"PYTHON": sys.executable, **os.environ, **own}


def submit(job: Job, line: Sequence[str], script: Path, own_flags: Sequence[str]) -> None:
    """Queue the job as a batch script that runs this command again, to supervise.

    Raises:
        UserError: Slurm does not take it.
    """
    flags = [flag for flag in own_flags if flag != "--batch"]
    with blame("--output-dir"), replacing(script) as temporary:
        temporary.write_text(
            batch_script([*flags, "--output-dir", str(job.output_dir), "--", *job.command])
        )
    result = subprocess.run(
        line, env=job_environment(job), capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise UserError(result.stderr)
    number = result.stdout.strip().partition(";")[0]
    logger.info("queued as job %s; its log: %s", number, job.logs / f"job-{number}.log")
    sys.stdout.write(number + "\n")


def supervise_batch_job(job: Job, max_retry: int) -> int:
    """Inside the batch job: run the command on its nodes; where interrupted, queue the job again.

    Returns:
        The exit code of the job.
    """
    number = os.environ.get("SLURM_JOB_ID")
    if number is None:
        raise UserError("--supervise: SLURM_JOB_ID is not set, expected a start by sbatch")

    def requeue() -> None:
        # It says itself, in the job's log, where it cannot.
        subprocess.run(["scontrol", "requeue", number], check=False)

    environment = job_environment(job)
    supervisor = Supervisor(
        step_line(job), job.output_dir, job.logs, environment, max_retry, requeue
    )
    return supervisor.run()


if __name__ == "__main__":
    run(main)
