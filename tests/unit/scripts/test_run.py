"""The Slurm launcher with stand-ins for Slurm's commands; tests/slurm/ has the real ones."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.cli.run import time_limit_seconds
from tests.commands import ROOT
from tests.unit.scripts.slurm_stand_in import calls, environment

# An interrupted run that gets as far as step $1, $2, ... and then finishes.
INTERRUPTED = """
here=$(wc -l <"$HOME/srun")
[ "$here" -gt $# ] && exit 0
step=${!here}
echo '{"signal": "SIGUSR1", "epoch": 1, "step": '"$step"'}' >"$INTERRUPTED_FILE"
exit 1
"""


def line(home: Path, *arguments: object) -> list[str]:
    flags = ["-J", "job", "--output-dir", home / "out", *arguments]
    return [sys.executable, str(ROOT / "scripts" / "cli" / "run.py"), *map(str, flags)]


def launch(
    home: Path, *arguments: object, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        line(home, *arguments),
        cwd=cwd or home,
        env=environment(home, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_published_flags_make_the_line(home: Path) -> None:
    flags = ["-p", "batch", "-A", "lab", "-N", "4", "-t", "4:00:00", "--gpus-per-node", "8"]
    flags += ["--mode", "train", "--max-retry", "2", "--dry-run"]
    result = launch(home, *flags, "bash", "scripts/train/X.sh", "--name", "two words; rm -rf /")
    assert result.returncode == 0, result.stderr
    asked = (
        "--job-name=job --partition=batch --account=lab --time=4:00:00 --gpus-per-node=8 "
        "--exclusive --signal=USR1@120"
    )
    tasks = "--nodes=4 --ntasks=4 --ntasks-per-node=1"
    command = "bash scripts/train/X.sh --name 'two words; rm -rf /'"
    assert result.stdout == f"srun {asked} {tasks} --wait=60 --unbuffered {command}\n"
    assert launch(home, *flags, "--pty", "bash").stdout == f"srun {asked} {tasks} --pty bash\n"
    batch = launch(home, *flags, "--batch", "--slurm-args=--qos=long --mem=0", "bash").stdout
    logs = home / "out" / "logs"
    assert batch == (
        f"sbatch --parsable {asked} --qos=long --mem=0 {tasks} --requeue --open-mode=append "
        f"--output={logs}/job-%j.log {logs}/job.sh\n"
    )
    assert not (home / "out").exists() and not calls(home, "srun")


def test_arguments_reach_the_job_as_they_are(home: Path) -> None:
    show = 'printf \'<%s>\' "$@"; echo; echo "$OUTPUT_DIR $RUN_NAME $PYTHON"'
    result = launch(home, "bash", "-c", show, "x", "a b", "$(id)", "*", "--dry-run", PYTHON="py")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"<a b><$(id)><*><--dry-run>\n{home}/out job py\n"
    (log,) = (home / "out" / "logs").iterdir()
    assert log.read_text() == result.stdout
    assert f"log: {log}" in result.stderr


def test_folder_of_a_run_is_named_by_mode_and_name(home: Path) -> None:
    arguments = line(home, "--mode", "eval", "bash", "-c", 'echo "$OUTPUT_DIR"')
    del arguments[4:6]
    result = subprocess.run(
        arguments, cwd=home, env=environment(home), capture_output=True, text=True, check=True
    )
    assert result.stdout == f"{home}/runs/eval/job\n"


def test_interruptions_are_no_failures(home: Path) -> None:
    out = home / "out"
    out.mkdir()
    (out / "interrupted.json").write_text("of an earlier run")
    script = ["bash", "-c", INTERRUPTED, "x"]
    result = launch(home, "--max-retry", "0", *script, *("10", "20", "30"))
    assert result.returncode == 0, result.stderr
    assert len(calls(home, "srun")) == 4
    assert "interrupted by SIGUSR1 (epoch 1, step 20); going on" in result.stderr
    assert not (out / "interrupted.json").exists()
    assert json.loads((out / "logs" / "interrupted.json").read_text())["step"] == 30
    assert len(list((out / "logs").glob("start-*.log"))) == 4


def test_an_interruption_without_progress_is_a_failure(home: Path) -> None:
    script = ["bash", "-c", INTERRUPTED, "x"]
    result = launch(home, "--max-retry", "1", *script, *("10", "10", "10", "10"))
    assert result.returncode == 1
    assert len(calls(home, "srun")) == 3
    assert "interrupted by SIGUSR1 (epoch 1, step 10), as the last time" in result.stderr
    # Progress in between starts the count anew; the first interruption is that of the run before.
    (home / "srun").unlink()
    result = launch(home, "--max-retry", "1", *script, *("10", "20", "20", "30", "30"))
    assert result.returncode == 0, result.stderr


def test_an_unreadable_marker_shows_no_progress(home: Path) -> None:
    script = 'touch "$OUTPUT_DIR/interrupted.json"'
    result = launch(home, "--max-retry", "0", "bash", "-c", script)
    assert result.returncode == 1
    assert "interrupted by ? (?), as the last time" in result.stderr


def test_the_marker_of_an_earlier_run_does_not_speak_for_this_one(home: Path) -> None:
    out = home / "out"
    out.mkdir()
    (out / "interrupted.json").write_text('{"signal": "SIGUSR1", "epoch": 1, "step": 2}')
    result = launch(home, "--max-retry", "0", "bash", "-c", "exit 3")
    assert result.returncode == 3
    assert "exit code 3" in result.stderr and "interrupted" not in result.stderr


def test_finished_shards_are_progress_too(home: Path) -> None:
    script = """
        here=$(wc -l <"$HOME/srun")
        [ "$here" -gt 3 ] && exit 0
        echo '{"signal": "SIGUSR1", "shards": '"$here"'}' >"$INTERRUPTED_FILE"
        exit 1
    """
    result = launch(home, "--max-retry", "0", "bash", "-c", script)
    assert result.returncode == 0, result.stderr
    assert "interrupted by SIGUSR1 (shards 3); going on" in result.stderr


@pytest.mark.parametrize("reason", ["TIME LIMIT", "PREEMPTION", "NODE FAILURE"])
def test_what_slurm_cuts_short_is_no_failure(home: Path, reason: str) -> None:
    words = f"slurmstepd-n1: error: *** STEP 5.0 ON n1 CANCELLED AT 2026-01-01 DUE TO {reason} ***"
    script = f'[ $(wc -l <"$HOME/srun") -gt 2 ] || {{ echo "{words}" >&2; exit 137; }}'
    result = launch(home, "--max-retry", "0", "bash", "-c", script)
    assert result.returncode == 0, result.stderr
    assert len(calls(home, "srun")) == 3
    assert f"ended by Slurm ({reason.lower()}); going on" in result.stderr


@pytest.mark.parametrize("code", [1, 7])
def test_failures_are_retried_and_give_the_exit_code(home: Path, code: int) -> None:
    result = launch(home, "--max-retry", "2", "bash", "-c", f"exit {code}")
    assert result.returncode == code
    assert len(calls(home, "srun")) == 3
    assert result.stderr.count(" E failure ") == 3


def test_a_killed_job_gives_the_exit_code_of_a_shell(home: Path) -> None:
    result = launch(home, "--max-retry", "0", "bash", "-c", "kill -KILL $$")
    assert result.returncode == 128 + signal.SIGKILL


def test_a_node_that_fails_is_not_the_job_s_failure(home: Path) -> None:
    script = """
        [ $(wc -l <"$HOME/srun") -gt 2 ] && exit 0
        echo "srun: error: Node failure on n2"
        exit 1
    """
    result = launch(home, "--max-retry", "0", "bash", "-c", script)
    assert result.returncode == 0, result.stderr
    assert len(calls(home, "srun")) == 3
    assert "ended by Slurm (node failure); going on" in result.stderr


def test_a_launch_that_failed_is_no_refusal(home: Path) -> None:
    words = "srun: error: Task launch for StepId=5.0 failed on node n2: Communication failure"
    result = launch(home, "--max-retry", "1", "bash", "-c", f"echo '{words}'; exit 6")
    assert result.returncode == 6
    assert len(calls(home, "srun")) == 2


def test_failures_with_progress_in_between_are_not_in_a_row(home: Path) -> None:
    script = """
        here=$(wc -l <"$HOME/srun")
        [ "$here" -gt 5 ] && exit 4
        touch -d "2026-01-01 00:00:0$here" "$OUTPUT_DIR/checkpoint-last.pth"
        exit 3
    """
    result = launch(home, "--max-retry", "1", "bash", "-c", script)
    assert result.returncode == 4
    assert len(calls(home, "srun")) == 6
    assert result.stderr.count("failure 1 (1 are tried again): exit code 3") == 5
    assert "failure 2 (1 are tried again): exit code 4" in result.stderr


REFUSALS = ["error: invalid partition: x", "fatal: no controller", "unrecognized option '--x'"]
REFUSALS += ["error: Unable to allocate resources: Invalid account"]


@pytest.mark.parametrize("waited", ["", "srun: job 5 queued and waiting for resources\n"])
@pytest.mark.parametrize("words", REFUSALS)
def test_a_job_that_slurm_does_not_take_is_not_retried(home: Path, words: str, waited: str) -> None:
    script = 'echo "$2srun: $1"; echo more; exit 1'
    result = launch(home, "bash", "-c", script, "x", words, waited)
    assert result.returncode == 2
    said = words.removeprefix("error: ").removeprefix("fatal: ")
    assert result.stderr.splitlines()[-1] == f"error: srun: {said}"
    assert len(calls(home, "srun")) == 1


def test_a_job_that_sbatch_does_not_take_ends_in_one_line(home: Path) -> None:
    result = launch(home, "--batch", "true", REFUSE="invalid account")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "error: sbatch: error: invalid account"


def test_what_slurm_says_of_a_failed_task_is_no_refusal(home: Path) -> None:
    script = "echo 'srun: error: n1: task 0: Exited with exit code 4'; exit 4"
    assert launch(home, "--max-retry", "1", "bash", "-c", script).returncode == 4
    assert len(calls(home, "srun")) == 2


def test_signals_ask_the_job_to_save_and_a_second_one_kills_it(home: Path) -> None:
    script = (
        "trap 'echo saving' USR1; trap 'echo killed; exit 9' TERM; echo ready; "
        "while true; do sleep 0.05; done"
    )
    with subprocess.Popen(
        line(home, "bash", "-c", script), cwd=home, env=environment(home), stdout=subprocess.PIPE
    ) as process:
        read = process.stdout.readline
        assert read() == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        assert read() == b"saving\n"
        process.send_signal(signal.SIGINT)
        assert read() == b"saving\n"
        asked_at = time.monotonic()
        while read_soon(process) != b"killed\n":  # echoes of the first signal are no second one
            assert time.monotonic() - asked_at < 20
            process.send_signal(signal.SIGTERM)
        assert time.monotonic() - asked_at > 1.5
        assert process.wait(20) == 128 + signal.SIGINT
    assert len(calls(home, "srun")) == 1


def read_soon(process: subprocess.Popen) -> bytes:
    """A line that the process prints within 0.2 seconds, or nothing."""
    import select

    ready, _, _ = select.select([process.stdout], [], [], 0.2)
    return process.stdout.readline() if ready else b""


def test_a_batch_job_supervises_itself(home: Path) -> None:
    flags = ["-N", "2", "--max-retry", "1", "--batch"]
    result = launch(home, *flags, "bash", "-c", INTERRUPTED, "x", "10")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "12\n"
    logs = home / "out" / "logs"
    assert f"{logs}/job-12.log" in result.stderr
    assert calls(home, "sbatch")[0].endswith(f"{logs}/job.sh")
    starts = []
    for _ in range(2):
        starts.append(
            subprocess.run(
                ["bash", logs / "job.sh"],
                cwd=home,
                env=environment(home, SLURM_JOB_ID="12"),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        )
    # The first start was interrupted: Slurm is asked for the second, which finishes.
    assert [start.returncode for start in starts] == [1, 0], starts
    assert calls(home, "scontrol") == ["requeue 12"]
    assert all(
        call.startswith("--nodes=2 --ntasks=2 --ntasks-per-node=1 --wait=60 --unbuffered bash")
        for call in calls(home, "srun")
    )


def test_a_batch_job_whose_step_is_not_taken_tries_again(home: Path) -> None:
    words = "srun: error: Unable to create step for job 12: Zero Bytes were transmitted"
    script = f'[ $(wc -l <"$HOME/srun") -gt 1 ] || {{ echo "{words}"; exit 1; }}'
    assert launch(home, "--batch", "bash", "-c", script).returncode == 0
    started = subprocess.run(
        ["bash", home / "out" / "logs" / "job.sh"],
        env=environment(home, SLURM_JOB_ID="12"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert started.returncode == 0, started.stderr
    assert len(calls(home, "srun")) == 2


def test_a_full_disk_for_logs_does_not_end_the_job(home: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            line(home, "bash", "-c", "echo something; exit 5", *["x"]),
            cwd=home,
            env=environment(home),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 5
    assert "no more output is copied: No space left on device" in result.stderr
    assert (home / "out" / "logs" / "start-001.log").read_text() == "something\n"


BAD = {
    "no name": (["-J", "", "true"], "-J/--job-name: found '', expected letters"),
    "name that is a path": (["-J", "a/b", "true"], "-J/--job-name: found 'a/b'"),
    "mode that is a path": (["--mode", "..", "true"], "--mode: found '..'"),
    "no nodes": (["-N", "0", "true"], "-N/--nodes: found '0', expected a whole number from 1"),
    "GPUs": (["--gpus-per-node", "all", "true"], "--gpus-per-node: found 'all'"),
    "time": (["-t", "soon", "true"], "-t/--time: found 'soon', expected minutes, H:M:S"),
    "no time": (["-t", "0:00", "true"], "-t/--time: found '0:00', expected more than nothing"),
    "warning": (["-t", "2", "true"], "--warn-seconds: found 120 with a time limit of 2"),
    "no warning": (["--warn-seconds", "0", "true"], "--warn-seconds: found '0'"),
    "retries": (["--max-retry", "-1", "true"], "--max-retry: found '-1'"),
    "quotes": (["--slurm-args=--x='", "true"], '--slurm-args: found "--x=\'"'),
    "terminal": (["--pty", "--batch", "true"], "--pty: found --batch too"),
    "no command": ([], "COMMAND: not given, expected what to run"),
    "no job": (["--supervise", "true"], "--supervise: SLURM_JOB_ID is not set"),
    "unknown flag": (["--gpu", "8"], "unrecognized arguments: --gpu"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_ends_in_one_line(home: Path, arguments: list[str], message: str) -> None:
    result = launch(home, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}"), result.stderr
    assert result.stderr.count("\n") == 1 and not result.stdout
    assert not (home / "out").exists()


def test_without_slurm_it_says_what_to_run(home: Path) -> None:
    (home / "bin" / "srun").unlink()
    result = launch(home, "bash", "my script.sh", PATH=f"{home}/bin")
    assert result.returncode == 2
    assert result.stderr == (
        "error: srun: not found, expected Slurm's commands on the PATH; without Slurm run the "
        "command itself: bash 'my script.sh'\n"
    )


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("1", 1), ("1:30", 2), ("0:10", 1), ("4:00:00", 240), ("1-2:30", 1590), ("2-00:00:01", 2881)],
)
def test_time_limits_are_those_of_slurm(text: str, minutes: int) -> None:
    assert time_limit_seconds(text) == 60 * minutes


def test_time_limits_that_slurm_has_not() -> None:
    for text in ("", "4h", "1:2:3:4", "-1", "1-", "1.5"):
        with pytest.raises(ValueError, match="expected minutes"):
            time_limit_seconds(text)
