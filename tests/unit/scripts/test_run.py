"""The Slurm launcher with stand-ins for Slurm's commands; tests/slurm/ has the real ones."""

import json
import select
import signal
import subprocess
import time

import pytest

from tests.unit.scripts.conftest import Home

# Which start this is, from 1.
HERE = 'here=$(wc -l <"$HOME/srun"); '
# An interrupted run that gets as far as step $1, $2, ... and then finishes.
INTERRUPTED = f"""
{HERE}
[ "$here" -gt $# ] && exit 0
echo '{{"signal": "SIGUSR1", "epoch": 1, "step": '"${{!here}}"'}}' >"$INTERRUPTED_FILE"
exit 1
"""


def test_published_flags_make_the_line(home: Home) -> None:
    flags = ["-p", "batch", "-A", "lab", "-N", "4", "-t", "4:00:00", "--gpus-per-node", "8"]
    flags += ["--mode", "train", "--max-retry", "2", "--dry-run"]
    result = home.launch(*flags, "bash", "scripts/train/X.sh", "--name", "two words; rm -rf /")
    asked = (
        "--job-name=job --partition=batch --account=lab --time=4:00:00 --gpus-per-node=8 "
        "--exclusive --signal=USR1@120"
    )
    tasks = "--nodes=4 --ntasks=4 --ntasks-per-node=1"
    command = "bash scripts/train/X.sh --name 'two words; rm -rf /'"
    assert result.stdout == f"srun {asked} {tasks} --wait=60 --unbuffered {command}\n"
    assert home.launch(*flags, "--pty", "bash").stdout == f"srun {asked} {tasks} --pty bash\n"
    batch = home.launch(*flags, "--batch", "--slurm-args=--qos=long --mem=0", "bash").stdout
    logs = home.out / "logs"
    assert batch == (
        f"sbatch --parsable {asked} --qos=long --mem=0 {tasks} --requeue --open-mode=append "
        f"--output={logs}/job-%j.log {logs}/job.sh\n"
    )
    assert not home.out.exists() and not home.calls("srun")


def test_arguments_reach_the_job_as_they_are(home: Home) -> None:
    show = 'printf \'<%s>\' "$@"; echo; echo "$OUTPUT_DIR $RUN_NAME $PYTHON"'
    command = ["bash", "-c", show, "x", "a b", "$(id)", "*", "--dry-run"]
    result = home.launch(*command, PYTHON="py")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"<a b><$(id)><*><--dry-run>\n{home.out} job py\n"
    (log,) = (home.out / "logs").iterdir()
    assert log.read_text() == result.stdout and f"log: {log}" in result.stderr
    # By default the folder is named by mode and name.
    python, script, *_ = home.line()
    result = home.run([python, script, "-J", "j", "--mode", "eval", *command], PYTHON="py")
    assert result.stdout.endswith(f"\n{home.path}/runs/eval/j j py\n")


def test_interruptions_are_failures_only_where_they_made_no_progress(home: Home) -> None:
    def launch(*steps: str) -> tuple[int, str, int]:
        (home.path / "srun").unlink(missing_ok=True)
        result = home.launch("--max-retry", "1", "bash", "-c", INTERRUPTED, "x", *steps)
        return result.returncode, result.stderr, len(home.calls("srun"))

    code, said, starts = launch("10", "20", "30")
    assert (code, starts) == (0, 4), said
    assert "interrupted by SIGUSR1 (epoch 1, step 20); going on" in said and " E " not in said
    logs = home.out / "logs"
    assert json.loads((logs / "interrupted.json").read_text())["step"] == 30
    assert not (home.out / "interrupted.json").exists()
    assert len(list(logs.glob("start-*.log"))) == 4
    code, said, starts = launch("10", "10", "10", "10")
    assert (code, starts) == (1, 3)
    assert "interrupted by SIGUSR1 (epoch 1, step 10), as the last time" in said
    # Progress in between starts the count anew; the first interruption is that of the run before.
    assert launch("10", "20", "20", "30", "30")[0] == 0


def cut_short(reason: str) -> tuple[str, int, int, int, str]:
    words = f"slurmstepd-n1: error: *** STEP 5.0 ON n1 CANCELLED AT 2026-01-01 DUE TO {reason} ***"
    script = f'[ "$here" -gt 2 ] || {{ echo "{words}" >&2; exit 137; }}'
    return script, 0, 0, 3, f"ended by Slurm ({reason.lower()}); going on"


# What each start does -> retries, exit code, starts, what is said.
ENDINGS = {
    **{reason: cut_short(reason) for reason in ("TIME LIMIT", "PREEMPTION", "NODE FAILURE")},
    "a node fails": (
        '[ "$here" -gt 2 ] && exit 0; echo "srun: error: Node failure on n2"; exit 1',
        *(0, 0, 3, "ended by Slurm (node failure); going on"),
    ),
    "shards are progress": (
        '[ "$here" -gt 3 ] && exit 0; '
        """echo '{"signal": "SIGUSR1", "shards": '"$here"'}' >"$INTERRUPTED_FILE"; exit 1""",
        *(0, 0, 4, "interrupted by SIGUSR1 (shards 3); going on"),
    ),
    "an unreadable marker shows no progress": (
        'touch "$INTERRUPTED_FILE"',
        *(0, 1, 1, "interrupted by ? (?), as the last time"),
    ),
    "killed": ("kill -KILL $$", 2, 137, 3, "failure 3 (2 are tried again): exit code 137"),
    "failures with progress are not in a row": (
        '[ "$here" -gt 5 ] && exit 4; '
        'touch -d "2026-01-01 00:00:0$here" "$OUTPUT_DIR/checkpoint-last.pth"; exit 3',
        *(1, 4, 6, "failure 2 (1 are tried again): exit code 4"),
    ),
    "a failed launch or task is no refusal": (
        "echo 'srun: error: Task launch for StepId=5.0 failed on node n2: x'; "
        "echo 'srun: error: n1: task 0: Exited with exit code 4'; exit 4",
        *(1, 4, 2, "exit code 4"),
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_ends_a_start(home: Home, ending: str) -> None:
    script, retries, code, starts, said = ENDINGS[ending]
    home.out.mkdir()
    # Of an earlier run: it does not speak for this one.
    (home.out / "interrupted.json").write_text('{"signal": "SIGTERM", "epoch": 1, "step": 2}')
    result = home.launch("--max-retry", retries, "bash", "-c", HERE + script)
    assert result.returncode == code, result.stderr
    assert len(home.calls("srun")) == starts
    assert said in result.stderr and "SIGTERM" not in result.stderr
    assert result.stderr.count(" E failure ") == (starts if code else 0)


REFUSALS = ["error: invalid partition: x", "fatal: no controller", "unrecognized option '--x'"]
REFUSALS += ["error: Unable to allocate resources: Invalid account"]


@pytest.mark.parametrize("words", REFUSALS)
def test_a_job_that_slurm_does_not_take_is_not_retried(home: Home, words: str) -> None:
    said = words.removeprefix("error: ").removeprefix("fatal: ")
    queued = "srun: job 5 queued and waiting for resources\n" * ("Unable" in words)
    result = home.launch("bash", "-c", 'echo "$2srun: $1"; echo more; exit 1', "x", words, queued)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == f"error: srun: {said}" and len(home.calls("srun")) == 1


def test_signals_ask_the_job_to_save_and_a_second_one_kills_it(home: Home) -> None:
    script = (
        "trap 'echo saving' USR1; trap 'echo killed; exit 9' TERM; echo ready; "
        "while true; do sleep 0.05; done"
    )
    line, environment = home.line("bash", "-c", script), home.environment()
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE) as process:
        read = process.stdout.readline
        assert read() == b"ready\n"
        for number in (signal.SIGUSR1, signal.SIGINT):
            process.send_signal(number)
            assert read() == b"saving\n"
        asked_at = time.monotonic()
        for _ in range(100):  # an echo of the first signal is no second one
            if select.select([process.stdout], [], [], 0.2)[0]:
                break
            process.send_signal(signal.SIGTERM)
        assert read() == b"killed\n"
        assert time.monotonic() - asked_at > 1.5 and process.wait(20) == 128 + signal.SIGINT
    assert len(home.calls("srun")) == 1


def test_a_batch_job_supervises_itself(home: Home) -> None:
    flags = ["-N", "2", "--max-retry", "1", "--batch"]
    result = home.launch(*flags, "bash", "-c", INTERRUPTED, "x", "10")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "12\n"
    logs = home.out / "logs"
    assert f"{logs}/job-12.log" in result.stderr
    assert home.calls("sbatch")[0].endswith(f"{logs}/job.sh")
    starts = [home.run(["bash", logs / "job.sh"], SLURM_JOB_ID="12") for _ in range(2)]
    # The first start was interrupted: Slurm is asked for the second, which finishes.
    assert [start.returncode for start in starts] == [1, 0], starts
    assert home.calls("scontrol") == ["requeue 12"]
    step = "--nodes=2 --ntasks=2 --ntasks-per-node=1 --wait=60 --unbuffered bash"
    assert all(call.startswith(step) for call in home.calls("srun"))


def test_a_batch_job_whose_step_is_not_taken_tries_again(home: Home) -> None:
    words = "srun: error: Unable to create step for job 12: Zero Bytes were transmitted"
    script = f'{HERE}[ "$here" -gt 1 ] || {{ echo "{words}"; exit 1; }}'
    (home.out / "logs").mkdir(parents=True)
    result = home.launch("--supervise", "bash", "-c", script, SLURM_JOB_ID="12")
    assert result.returncode == 0, result.stderr
    assert len(home.calls("srun")) == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_for_logs_does_not_end_the_job(home: Home, unbuffered: str) -> None:
    line = home.line("--max-retry", 0, "bash", "-c", "echo something; exit 5")
    shell = f'PYTHONUNBUFFERED={unbuffered} exec "$@" >/dev/full'
    result = home.run(["bash", "-c", shell, "x", *line])
    assert result.returncode == 5
    assert "no more output is copied: No space left on device" in result.stderr
    assert (home.out / "logs" / "start-001.log").read_text() == "something\n"


def test_what_the_cluster_refuses_ends_in_one_line(home: Home) -> None:
    refused = home.launch("--batch", "true", REFUSE="invalid account")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == "error: sbatch: error: invalid account"
    (home.path / "bin" / "srun").unlink()
    result = home.launch("bash", "my script.sh", PATH=f"{home.path}/bin")
    assert result.returncode == 2
    assert result.stderr == (
        "error: srun: not found, expected Slurm's commands on the PATH; without Slurm run the "
        "command itself: bash 'my script.sh'\n"
    )
