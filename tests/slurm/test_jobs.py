"""The launcher on a real two-node Slurm: training, time limits, preemption, failures, signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hub.weights import read_checkpoint
from tests.commands import ROOT
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.conftest import CORES
from training.checkpoint import LAST
from util.cli import available_cores

pytestmark = pytest.mark.slow

# So that training outlasts a limit of one minute: three jobs side by side share the cores, and on
# six of them each is three times as fast as on two.
EPOCHS = 15 * min(3, max(1, available_cores() // 2))
# A preempting job must not fit beside the one that it preempts; all others must.
MOST_CORES = f"--slurm-args=--cpus-per-task={CORES // 2 + 1}"
DEADLINE = 900


@dataclass(frozen=True)
class Started:
    """A running `scripts/cli/run.py`.

    Attributes:
        process: of the command.
        output: its `--output-dir`.
    """

    process: subprocess.Popen
    output: Path

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
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && exit
while true; do sleep 0.1; done
"""
SAVES = """
save() { echo '{"signal": "SIGUSR1", "epoch": 0, "step": 9}' >"$INTERRUPTED_FILE"; }
trap 'save; exit 1' USR1
"""


@dataclass(frozen=True)
class Trainings:
    """The same training three times, side by side, with two jobs that wait for their time limit."""

    plain: Started
    limited: Started
    preempted: Started
    saves: Started
    deaf: Started


@pytest.fixture(scope="module", autouse=True)
def trainings(
    cluster: Cluster, digits: Path, tmp_path_factory: pytest.TempPathFactory, long: bool
) -> Iterator[Trainings]:
    folder = tmp_path_factory.mktemp("trainings")
    epochs = 2 * EPOCHS if long else EPOCHS
    script = ["bash", "tests/slurm/train_digits.sh", "--epochs", epochs, "--save_last_freq", 1000]
    digits_at = {"DIGITS": str(digits)}
    limited_starts = "2" if long else "1"
    started = Trainings(
        start(cluster, folder / "plain", *script, **digits_at),
        start(
            *(cluster, folder / "limited", *LIMIT, *script),
            **{**digits_at, "LIMITED_STARTS": limited_starts},
        ),
        start(
            *(cluster, folder / "preempted", "-p", "cheap", MOST_CORES, "--batch", *script),
            *("--save_steps", 5),
            **digits_at,
        ),
        start(cluster, folder / "saves", *LIMIT, "--batch", "bash", "-c", SAVES + WAITS_ONCE),
        start(
            *(cluster, folder / "deaf", *LIMIT, "--batch", "bash", "-c"),
            "trap '' USR1" + WAITS_ONCE,
        ),
    )
    yield started
    for each in vars(started).values():
        each.process.kill()


def assert_same_training(found: Path, expected: Path) -> None:
    """Equal weights, optimiser and logged losses, to the last bit."""
    one, other = (read_checkpoint(folder / LAST, "test") for folder in (found, expected))
    assert one["epoch"] == other["epoch"]
    assert one["model"].keys() == other["model"].keys()
    for name, value in other["model"].items():
        assert torch.equal(one["model"][name], value), name
    for index, moments in other["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(one["optimizer"]["state"][index][name], value), (index, name)
    assert logged_losses(found) == logged_losses(expected)


def logged_losses(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


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


def test_a_preempted_batch_job_goes_on_where_it_was(cluster: Cluster, trainings: Trainings) -> None:
    job = trainings.preempted
    number = job.finish().splitlines()[-1]
    saved = job.output / LAST
    wait_until(saved.exists, "a checkpoint", DEADLINE)
    urgent = ["srun", "-p", "urgent", "-N", "2", *MOST_CORES.partition("=")[2].split(), "true"]
    subprocess.run(urgent, env=cluster.environment(), timeout=DEADLINE, check=True)
    wait_until(lambda: cluster.job(number)["JobState"] == "COMPLETED", "its end", DEADLINE)
    assert cluster.job(number)["Restarts"] == "1"
    assert len(job.logs()) == 2
    assert "resumed from" in job.logs()[1]
    trainings.plain.finish()
    assert_same_training(job.output, trainings.plain.output)


def test_a_job_goes_on_after_its_time_limit(trainings: Trainings, long: bool) -> None:
    job = trainings.limited
    said = job.finish()
    # Interrupted by the warning, with time to save; a time limit is no failure.
    interruptions = re.findall(r"interrupted by SIGUSR1 \(epoch \d+, step \d+\); going on", said)
    assert len(interruptions) == (2 if long else 1)
    assert "failure" not in said
    assert len(job.logs()) == len(interruptions) + 1
    trainings.plain.finish()
    assert_same_training(job.output, trainings.plain.output)


@pytest.mark.parametrize("how", ["saves", "deaf"])
def test_a_batch_job_is_queued_again_at_its_time_limit(
    cluster: Cluster, trainings: Trainings, how: str
) -> None:
    job: Started = getattr(trainings, how)
    number = job.finish().splitlines()[-1]
    wait_until(lambda: cluster.job(number)["JobState"] == "COMPLETED", "its end", DEADLINE)
    assert cluster.job(number)["Restarts"] == "1"
    supervisor = (job.output / "logs" / f"job-{number}.log").read_text()
    why = {
        "saves": "interrupted by SIGUSR1 (epoch 0, step 9)",
        "deaf": "ended by Slurm (time limit)",
    }
    assert f"{why[how]}; going on" in supervisor
    assert "failure" not in supervisor


def test_two_nodes_train_together(trainings: Trainings, long: bool) -> None:
    said = trainings.plain.finish()
    losses = logged_losses(trainings.plain.output)
    # 160 digits in batches of 16 on each of two processes.
    epochs = 2 * EPOCHS if long else EPOCHS
    assert [step for step, _ in losses] == list(range(5 * epochs))
    assert losses[-1][1] < 0.8 * losses[0][1]
    assert f"logs: {trainings.plain.output}/logs" in said
