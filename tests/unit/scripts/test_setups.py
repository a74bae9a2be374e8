"""scripts/setups/train.sh: nodes, processes and where they meet, with stand-ins for Slurm."""

import signal
from subprocess import CompletedProcess

from tests.commands import ROOT
from tests.unit.scripts.conftest import Home

SETUP = ROOT / "scripts" / "setups" / "train.sh"
STEP = dict(SLURM_JOB_ID="100", SLURM_STEP_ID="2", SLURM_STEP_NODELIST="n[1-2]")
STEP |= dict(SLURM_STEP_NUM_NODES="2", SLURM_STEP_NUM_TASKS="2", SLURM_NODEID="1")
STEP |= dict(NPROC_PER_NODE="4")
# Three GPUs, and each argument on its line.
PYTHON = "[ $1 = -c ] && echo 3 || printf '%s\\n' \"$@\""


def torchrun(home: Home, interpreter: str = PYTHON, **variables: str) -> CompletedProcess:
    """Run a script that says its folder and launches; by default its Python says what it runs."""
    script = home.path / "train me.sh"
    script.write_text(
        f'set -euo pipefail\nsource "{SETUP}"\necho "$OUTPUT_DIR"\nlaunch train.py --flag "a b"\n'
    )
    python = home.program("python", interpreter)
    return home.run(["bash", script], **{"PYTHON": str(python), **variables})


TRAINING = ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
TRAINING += ["train.py", "--flag", "a b"]


def test_processes_start_on_one_node_outside_slurm(home: Home) -> None:
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", *TRAINING]
    assert torchrun(home).stdout.splitlines() == ["output/train me", *run]
    assert torchrun(home, OUTPUT_DIR="o").stdout.splitlines() == ["o", *run]


def test_processes_meet_on_the_first_node_of_a_slurm_step(home: Home) -> None:
    result = torchrun(home, **STEP)
    assert result.stdout.splitlines()[1:] == [
        *("-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", "1"),
        *("--master_addr", "localhost", "--master_port", "13602", "--nproc_per_node", "4"),
        *TRAINING,
    ], result.stderr
    by_hand = torchrun(home, **STEP, MASTER_ADDR="here", MASTER_PORT="5", NODE_RANK="0")
    assert "--node_rank\n0\n--master_addr\nhere\n--master_port\n5\n" in by_hand.stdout
    # A node that DNS does not know is looked up in Slurm.
    assert "--master_addr\n10.1.2.3\n" in torchrun(home, **STEP, FIRST="no.such.name").stdout


def test_a_start_that_cannot_work_ends_in_one_line(home: Home) -> None:
    for message, variables in {
        "found no address of node not.this.one, expected one in": {**STEP, "FIRST": "not.this.one"},
        "found 16 tasks on 2 nodes, expected one task": {**STEP, "SLURM_STEP_NUM_TASKS": "16"},
        "found one process for a job of 2 nodes": {"SLURM_JOB_NUM_NODES": "2"},
        "MASTER_ADDR is not set, expected it with NNODES=2": {"NNODES": "2", "NODE_RANK": "0"},
    }.items():
        result = torchrun(home, **variables)
        assert result.returncode == 2 and result.stderr.startswith(f"error: train.sh: {message}")
        assert result.stderr.count("\n") == 1


def test_the_script_of_a_slurm_step_outlives_a_signal(home: Home) -> None:
    warned = "kill -USR1 $PPID; sleep 0.2; exit 5"
    assert torchrun(home, warned, **STEP).returncode == 5
    assert torchrun(home, warned, NPROC_PER_NODE="1").returncode == -signal.SIGUSR1
