"""A real Slurm of two nodes on this machine, for the tests of the launcher.

Both nodes are this machine and have names that DNS does not know. All daemons have their own
folder, ports and munge key: a Slurm that is already here is left alone.
"""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.apt import require_programs

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue", "sinfo")
NODES = ("n1", "n2")
# Daemons live where a user's PATH often does not lead.
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
# Seconds that the daemons may take to come up, and to go.
START_DEADLINE, STOP_DEADLINE = 60, 20

# config_overrides: nodes may claim more cores than the machine has, so that jobs run side by side.
# MinJobAge: the tests ask about jobs that ended long ago; Slurm forgets them after 300 seconds.
# cred_expire: how long a requeued job waits for its next start; 120 seconds for less than 5.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=2,sched_interval=5
ReturnToService=2
KillWait=10
MinJobAge=86400
SlurmctldPort={ports[0]}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=cheap Nodes=n1,n2 MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster, in the folder of its configuration, state and logs."""

    folder: Path

    def environment(self) -> dict[str, str]:
        """This process's variables, with those that lead Slurm's commands to this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": SEARCH_PATH}

    def query(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        return subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, timeout=30, check=True
        ).stdout

    def job(self, number: str) -> dict[str, str]:
        """The fields of a job as `scontrol show job` has them, for example `JobState`."""
        words = self.query("scontrol", "show", "job", number, "-o").split()
        return dict(word.split("=", 1) for word in words if "=" in word)


def wait_until(holds: Callable[[], object], what: str, seconds: float) -> None:
    """Poll until `holds()` is true, or raise `TimeoutError`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"found none within {seconds:g} s, expected {what}")
        time.sleep(0.1)


@contextmanager
def two_nodes(cpus: int) -> Iterator[Cluster]:
    """Bring a cluster up, of nodes that claim so many cores; take it down, whatever happened.

    Raises `MissingProgramsError`, or `TimeoutError` where the nodes do not come up.
    """
    require_programs(PROGRAMS, PACKAGES, SEARCH_PATH)
    with ExitStack() as at_exit:
        # Not pytest's folder: the names of sockets are at most 107 characters long.
        folder = Path(at_exit.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        cluster = Cluster(folder)
        for name in ("state", *(f"spool.{node}" for node in NODES)):
            (folder / name).mkdir()
        configuration = CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            user=getpass.getuser(),
            folder=folder,
            cpus=cpus,
            ports=_free_ports(3),
        )
        (folder / "slurm.conf").write_text(configuration)
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        at_exit.callback(_stop_daemons, folder)
        # The daemon that Slurm's commands and daemons prove to each other who they are with.
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log"}
        flags = [f"--{flag}={folder}/munge.{ending}" for flag, ending in files.items()]
        # --force: the folder is closed to other users, who have no business here.
        _start(cluster, "munged", "--force", f"--seed-file={folder}/munge.seed", *flags)
        _start(cluster, "slurmctld")
        for node in NODES:
            _start(cluster, "slurmd", "-N", node)
        wait_until(lambda: _all_idle(cluster), "two idle nodes (sinfo)", START_DEADLINE)
        # Jobs first: their processes are not children of the daemons.
        at_exit.callback(_cancel_jobs, cluster)
        yield cluster


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _start(cluster: Cluster, program: str, *flags: str) -> None:
    """Start a daemon; it puts itself in the background and leaves a file with its process id."""
    with (cluster.folder / f"{program}.start").open("ab") as output:
        subprocess.run(
            [shutil.which(program, path=SEARCH_PATH), *flags],
            env=cluster.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=START_DEADLINE,
            check=True,
        )


def _all_idle(cluster: Cluster) -> bool:
    try:
        states = cluster.query("sinfo", "--Node", "--noheader", "--format=%N %T").splitlines()
    except subprocess.CalledProcessError:  # the controller does not answer yet
        return False
    return {f"{node} idle" for node in NODES} <= {state.strip() for state in states}


def _cancel_jobs(cluster: Cluster) -> None:
    """End all jobs and wait for their processes."""
    with contextlib.suppress(subprocess.SubprocessError, TimeoutError):
        cluster.query("scancel", "--user", getpass.getuser())
        wait_until(lambda: not cluster.query("squeue", "--noheader"), "no job", STOP_DEADLINE)


def _stop_daemons(folder: Path) -> None:
    """End the daemons by their process ids and wait for them."""
    pids = []
    for path in folder.glob("*.pid"):
        with contextlib.suppress(ValueError, OSError):
            pids.append(int(path.read_text()))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not any(map(_is_alive, pids)), "no daemon", STOP_DEADLINE)
            return


def _is_alive(pid: int) -> bool:
    """Whether the process runs (one that has ended may wait for a parent that never asks)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
