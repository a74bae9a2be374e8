"""The launcher on a real two-node Slurm: training, time limits, preemption, failures, signals."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.integration.test_resume import logged, same_training
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.conftest import CORES
from training.checkpoint import LAST
from util.cli import available_cores

pytestmark = pytest.mark.slow

# So that a preemption, which takes Slurm seconds, finds its job in training: on six cores each of
# three jobs side by side is three times as fast as on two.
EPOCHS = 6 * min(3, max(1, available_cores() // 2))
# A preempting job must not fit beside the one that it preempts; all others must.
MOST_CORES = f"--slurm-args=--cpus-per-task={CORES // 2 + 1}"
DEADLINE = 900


@dataclass(frozen=True)
class Started:
    """A running `scripts/cli/run.py`."""

    process: subprocess.Popen
    output: Path  # its --output-dir

    def finish(self, code: int = 0) -> str:
        """Wait until it ends with exit code `code`; what it said."""
        found = self.process.wait(DEADLINE)
        said = (self.output / "said").read_text()
        assert found == code, said[-3000:]
        return said

    def logs(self) -> list[str]:
        """What each start of the job printed."""
        return [path.read_text() for path in sorted((self.output / "logs").glob("start-*.log"))]


def start(cluster: Cluster, output: Path, *arguments: object, **variables: str) -> Started:
    """Start the launcher for a job of two nodes, without waiting for it."""
    output.mkdir()
    line = [sys.executable, "scripts/cli/run.py", "-J", output.name, "-N", "2"]
    line += ["--gpus-per-node", "0", "--no-exclusive", "--output-dir", str(output)]
    environment = {**cluster.environment(), "OMP_NUM_THREADS": "1", "NPROC_PER_NODE": "1"}
    with (output / "said").open("wb") as said:
        process = subprocess.Popen(
            [*line, *map(str, arguments)],
            cwd=ROOT,
            env={**environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    return Started(process, output)


# The shortest time limit, and a warning that comes from half a minute to five seconds before it.
LIMIT = ("--time", "1", "--warn-seconds", "5")
# Waits for its time limit when it is first started, and ends when it is started again.
WAITS_ONCE = """
[ -e "$OUTPUT_DIR/again" ] && exit
sleep 1
touch "$OUTPUT_DIR/again"
while true; do sleep 0.5; done
"""
SAVES = """
save() { echo '{"signal": "SIGUSR1", "epoch": 0, "step": 9}' >"$INTERRUPTED_FILE"; }
trap 'save; exit 1' USR1
"""


@pytest.fixture(scope="module", autouse=True)
def jobs(
    cluster: Cluster, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Started]]:
    """The same training three times, side by side, with jobs that wait for their time limit."""
    folder, at = tmp_path_factory.mktemp("jobs"), {"DIGITS": str(digits)}
    script = ["bash", "tests/slurm/train_digits.sh", "--epochs", EPOCHS, "--save_last_freq", 1000]
    batch, saves, deaf = ["--batch", "bash", "-c"], SAVES + WAITS_ONCE, "trap '' USR1" + WAITS_ONCE
    preempted = ["-p", "cheap", MOST_CORES, "--batch", *script, "--save_steps", 5]
    started = {
        "plain": start(cluster, folder / "plain", *script, **at),
        "warned": start(cluster, folder / "warned", *script, **at),
        "preempted": start(cluster, folder / "preempted", *preempted, **at),
        "limited": start(cluster, folder / "limited", *LIMIT, *batch[1:], saves),
        "saves": start(cluster, folder / "saves", *LIMIT, *batch, saves),
        "deaf": start(cluster, folder / "deaf", *LIMIT, *batch, deaf),
    }
    yield started
    for each in started.values():
        each.process.kill()


def test_interrupted_trainings_end_as_one_that_was_not(
    cluster: Cluster, jobs: dict[str, Started]
) -> None:
    warned, preempted = jobs["warned"], jobs["preempted"]
    wait_until(lambda: "epoch 0 of" in "".join(warned.logs()), "an epoch", DEADLINE)
    # As Slurm does before the time limit, at which "limited" is.
    cluster.query("scancel", "--signal=USR1", "--name", warned.output.name)
    number = preempted.finish().splitlines()[-1]
    wait_until((preempted.output / LAST).exists, "a checkpoint", DEADLINE)
    urgent = ["srun", "-p", "urgent", "-N", "2", *MOST_CORES.partition("=")[2].split(), "true"]
    subprocess.run(urgent, env=cluster.environment(), timeout=DEADLINE, check=True)
    said = warned.finish()
    assert len(re.findall(r"interrupted by SIGUSR1 \(epoch \d+, step \d+\); going on", said)) == 1
    assert "failure" not in said
    wait_until(lambda: cluster.job(number)["JobState"] == "COMPLETED", "its end", DEADLINE)
    assert cluster.job(number)["Restarts"] == "1"
    jobs["plain"].finish()
    for job in (warned, preempted):
        assert len(job.logs()) == 2 and "resumed from" in job.logs()[1]
        assert same_training(job.output, jobs["plain"].output)


def test_two_nodes_train_together(jobs: dict[str, Started]) -> None:
    said = jobs["plain"].finish()
    losses = logged(jobs["plain"].output)["train/loss"]
    # 160 digits in batches of 16 on each of two processes.
    assert [step for step, _ in losses] == list(range(5 * EPOCHS))
    assert losses[-1][1] < 0.8 * losses[0][1]
    assert f"logs: {jobs['plain'].output}/logs" in said


def test_a_failing_job_stops_after_its_retries_with_its_exit_code(
    cluster: Cluster, tmp_path: Path
) -> None:
    job = start(cluster, tmp_path / "failing", "--max-retry", "2", "bash", "-c", "echo no; exit 7")
    said = job.finish(7)
    assert [log.count("no\n") for log in job.logs()] == [2, 2, 2]
    assert "failure 3 (2 are tried again): exit code 7" in said
    assert f"log: {job.output}/logs/start-003.log" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-p", "nowhere"], "invalid partition"),
        (["--batch", "-p", "nowhere"], "invalid partition"),
        (["--gpus-per-node", "8"], "Invalid generic resource"),
        (["--slurm-args=--no-such-flag"], "unrecognized option '--no-such-flag'"),
    ],
)
def test_a_job_that_slurm_does_not_take_ends_in_one_line(
    cluster: Cluster, tmp_path: Path, flags: list[str], message: str
) -> None:
    last = start(cluster, tmp_path / "job", *flags, "true").finish(2).splitlines()[-1]
    assert re.match(f"error: .*{message}", last), last


def test_the_user_s_signals_reach_the_job_and_end_it(cluster: Cluster, tmp_path: Path) -> None:
    waits = "trap 'echo asked to save; exit 3' USR1; echo ready; while true; do sleep 0.1; done"
    for number in (signal.SIGINT, signal.SIGTERM):
        job = start(cluster, tmp_path / number.name, "bash", "-c", waits)
        said = job.output / "said"
        wait_until(lambda said=said: said.read_text().count("ready") == 2, "both tasks", DEADLINE)
        os.kill(job.process.pid, number)
        job.finish(128 + number)
        (log,) = job.logs()
        assert log.count("asked to save") == 2


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("limited", r"interrupted by SIGUSR1 \(epoch 0, step 9\)"),
        ("saves", r"interrupted by SIGUSR1 \(epoch 0, step 9\)"),
        ("deaf", r"ended by Slurm \(time limit\)"),
    ],
)
def test_a_job_goes_on_after_its_time_limit(
    cluster: Cluster, jobs: dict[str, Started], how: str, why: str
) -> None:
    job = jobs[how]
    said = job.finish()
    if how != "limited":  # a batch job, which says it in its own log
        number = said.splitlines()[-1]
        wait_until(lambda: cluster.job(number)["JobState"] == "COMPLETED", "its end", DEADLINE)
        assert cluster.job(number)["Restarts"] == "1"
        said = (job.output / "logs" / f"job-{number}.log").read_text()
    assert len(re.findall(f"{why}; going on", said)) == 1 and "failure" not in said
