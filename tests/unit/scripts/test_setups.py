"""scripts/setups/train.sh: nodes, processes and where they meet, with stand-ins for Slurm."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from tests.commands import ROOT
from tests.unit.scripts.slurm_stand_in import SCONTROL, environment

STEP = {
    "SLURM_JOB_ID": "100",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NODEID": "1",
    "NPROC_PER_NODE": "4",
}


# Three GPUs, and each argument on its line.
PYTHON = "#!/usr/bin/env bash\n[ $1 = -c ] && echo 3 || printf '%s\\n' \"$@\"\n"


def torchrun(
    home: Path, interpreter: str = PYTHON, **variables: str
) -> subprocess.CompletedProcess:
    """Run a script of `launch train.py --flag "a b"`; by default the stand-in says what it runs."""
    script = home / "train me.sh"
    setup = ROOT / "scripts" / "setups" / "train.sh"
    script.write_text(f'set -euo pipefail\nsource "{setup}"\nlaunch train.py --flag "a b"\n')
    python = home / "bin" / "python"
    python.write_text(interpreter)
    python.chmod(0o755)
    return subprocess.run(
        ["bash", script],
        env=environment(home, **{"PYTHON": str(python), **variables}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


SIGNALS = ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
TRAINING = [*SIGNALS, "train.py", "--flag", "a b"]


def test_processes_start_on_one_node_outside_slurm(home: Path) -> None:
    result = torchrun(home)
    assert result.stdout.splitlines() == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", *TRAINING)
    ]


def test_a_script_has_an_output_folder_outside_slurm_too(home: Path) -> None:
    script = home / "my training.sh"
    setup = ROOT / "scripts" / "setups" / "train.sh"
    script.write_text(f'set -euo pipefail\nsource "{setup}"\necho "$OUTPUT_DIR"\n')
    variables = {"PYTHON": "python", "NPROC_PER_NODE": "1"}
    for output, expected in (({}, "output/my training\n"), ({"OUTPUT_DIR": "o"}, "o\n")):
        environ = environment(home, **variables, **output)
        done = subprocess.run(["bash", script], env=environ, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == (expected, "")


def test_processes_meet_on_the_first_node_of_a_slurm_step(home: Path) -> None:
    result = torchrun(home, **STEP)
    assert result.stdout.splitlines() == [
        *("-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", "1"),
        *("--master_addr", "localhost", "--master_port", "13602", "--nproc_per_node", "4"),
        *TRAINING,
    ], result.stderr
    by_hand = torchrun(home, **STEP, MASTER_ADDR="here", MASTER_PORT="5", NODE_RANK="0")
    assert "--node_rank\n0\n--master_addr\nhere\n--master_port\n5\n" in by_hand.stdout


def test_a_node_that_dns_does_not_know_is_looked_up_in_slurm(home: Path) -> None:
    scontrol = home / "bin" / "scontrol"
    scontrol.write_text(SCONTROL.replace("localhost", "no.such.name"))
    assert "--master_addr\n10.1.2.3\n" in torchrun(home, **STEP).stdout
    scontrol.write_text(SCONTROL.replace("localhost", "not.this.one"))
    unknown = torchrun(home, **STEP)
    assert unknown.returncode == 2
    assert unknown.stderr == (
        "error: train.sh: found no address of node not.this.one, expected one in DNS or in Slurm\n"
    )


def test_a_start_that_cannot_work_ends_in_one_line(home: Path) -> None:
    many = torchrun(home, **{**STEP, "SLURM_STEP_NUM_TASKS": "16"})
    assert many.returncode == 2
    assert many.stderr.startswith("error: train.sh: found 16 tasks on 2 nodes, expected one task")
    few = torchrun(home, SLURM_JOB_NUM_NODES="2")
    assert few.returncode == 2
    assert few.stderr.startswith("error: train.sh: found one process for a job of 2 nodes")
    half = torchrun(home, NNODES="2", NODE_RANK="0")
    assert half.returncode == 2
    assert half.stderr == "error: train.sh: MASTER_ADDR is not set, expected it with NNODES=2\n"


def test_the_script_of_a_slurm_step_outlives_a_signal(home: Path) -> None:
    warned = "#!/usr/bin/env bash\nkill -USR1 $PPID\nsleep 0.2\nexit 5\n"
    assert torchrun(home, warned, **STEP).returncode == 5
    assert torchrun(home, warned, NPROC_PER_NODE="1").returncode == -signal.SIGUSR1
