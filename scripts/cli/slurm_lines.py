"""The lines that ask Slurm for a job: argument lists, never a shell's text."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
