"""Runs that are stopped, killed and damaged end as those that never were."""

import json
import operator
import os
import pickle
import random
import signal
import subprocess
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import engine_lpd
import main_lpd
from hub.weights import atomic_save, read_checkpoint
from models.lpd import LPD
from tests.commands import start_command, succeed
from tests.integration.tiny_world import TinyWorld
from training import checkpoint as saving
from training.checkpoint import LAST, PREVIOUS
from util.errors import UserError
from util.signals import MARKER, StopSignals

# Six steps an epoch, everything random switched on; few files.
EPOCHS, STEPS = 4, 6
FLAGS = ["--epochs", str(EPOCHS), "--batch_size", "8", "--proj_dropout", "0.2"]
FLAGS += ["--save_last_freq", "100", "--save_intermediate_freq", "100"]


def flags(world: TinyWorld, output: Path, *more: object) -> list[str]:
    resume = ["--resume", str(output)]
    return [*world.train_flags(output), *FLAGS, *resume, *map(str, more)]


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars, as TensorBoard reads them: (step, value) by name."""
    events = EventAccumulator(str(folder))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}


def same_training(found: Path, expected: Path) -> bool:
    """Whether two runs ended with the same bits and told the same story."""
    contents = [read_checkpoint(folder / LAST, "test") for folder in (found, expected)]
    epochs = contents[1]["args"]["epochs"]
    steps = epochs * (contents[1]["num_images"] // contents[1]["global_batch"])
    for content in contents:
        del content["args"]  # where the files went
    same = [flatten(content) for content in contents]
    assert same[0].keys() == same[1].keys()
    for name, value in same[1].items():
        exact = torch.equal if isinstance(value, torch.Tensor) else operator.eq
        assert exact(same[0][name], value), name
    assert len(logged(expected)["train/loss"]) == steps
    return logged(found) == logged(expected)


def flatten(content: object, name: str = "") -> dict[str, object]:
    if not isinstance(content, dict | list | tuple):
        return {name: content}
    items = content.items() if isinstance(content, dict) else enumerate(content)
    return {key: leaf for k, v in items for key, leaf in flatten(v, f"{name}/{k}").items()}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the commands that the tests start: sums come out the same to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    main_lpd.main(flags(world, output))
    return output


class Killed(BaseException):
    """Stands in for a signal that ends the process."""


@contextmanager
def at_step(number: int, action: Callable[[], object]) -> Iterator[None]:
    """Do something after the optimiser's `number`-th step from here on."""
    optimize, steps = engine_lpd.optimize, count(1)

    def optimize_and_act(*arguments: object) -> object:
        result = optimize(*arguments)
        if next(steps) == number:
            action()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_lpd, "optimize", optimize_and_act)
        yield


def kill() -> None:
    raise Killed


def ask(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 8
    path.write_bytes(content)


def test_stopped_by_signals_anywhere_in_an_epoch(
    world: TinyWorld, uninterrupted: Path, tmp_path: Path
) -> None:
    """In the middle of an epoch, at its last step, at its first; the next start ends the mark."""
    place = 0
    for steps, number in ((2, signal.SIGUSR1), (4, signal.SIGINT), (1, signal.SIGTERM)):
        with at_step(steps, ask(number)), pytest.raises(SystemExit) as left:
            main_lpd.main(flags(world, tmp_path))
        place += steps
        assert left.value.code == 128 + number
        marker = json.loads((tmp_path / MARKER).read_text())
        epoch, step = divmod(place, STEPS)
        name = signal.Signals(number).name
        assert marker == {"signal": name, "epoch": epoch, "step": step}
    main_lpd.main(flags(world, tmp_path))
    assert not (tmp_path / MARKER).exists()
    assert same_training(tmp_path, uninterrupted)


def test_a_run_that_ended_goes_on_with_more_epochs(
    world: TinyWorld, uninterrupted: Path, tmp_path: Path
) -> None:
    for epochs in (2, EPOCHS):
        main_lpd.main(flags(world, tmp_path, "--epochs", epochs))
    (tmp_path / "checkpoint-1.pth").unlink()
    assert same_training(tmp_path, uninterrupted)


def test_flags_of_the_published_form_are_read(
    world: TinyWorld, uninterrupted: Path, tmp_path: Path
) -> None:
    """A run that saved its flags as a Namespace goes on as if nothing had changed."""
    with at_step(8, ask(signal.SIGTERM)), pytest.raises(SystemExit):
        main_lpd.main(flags(world, tmp_path))
    content = read_checkpoint(tmp_path / LAST, "test")
    assert content["args"]["img_size"] == 16
    atomic_save({**content, "args": Namespace(**content["args"])}, tmp_path / LAST)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / LAST)
    model = LPD.from_pretrained(tmp_path / LAST)
    assert (model.grid.stride, model._hub_mixin_config["proj_dropout"]) == (4, 0.2)
    main_lpd.main([*world.eval_flags(tmp_path / "out"), "--pretrained_ckpt", str(tmp_path / LAST)])
    assert len(list((tmp_path / "out" / "images").iterdir())) == 9
    main_lpd.main(flags(world, tmp_path))
    assert same_training(tmp_path, uninterrupted)


def test_killed_between_saves_and_resumed_from_the_one_before(
    world: TinyWorld, uninterrupted: Path, tmp_path: Path
) -> None:
    more = ("--save_steps", 4)
    with at_step(3, kill), pytest.raises(Killed):  # nothing is saved yet
        main_lpd.main(flags(world, tmp_path, *more))
    with at_step(15, kill), pytest.raises(Killed):
        main_lpd.main(flags(world, tmp_path, *more))
    places = [read_checkpoint(tmp_path / name, "test") for name in (PREVIOUS, LAST)]
    assert [(p["epoch"], p["step_in_epoch"]) for p in places] == [(0, 2), (1, 0)]
    damage(tmp_path / LAST)
    damaged = (tmp_path / LAST).read_bytes()
    main_lpd.main(flags(world, tmp_path, *more))
    assert same_training(tmp_path, uninterrupted)
    assert sorted(path.name for path in tmp_path.glob("*.pth*")) == [
        *("checkpoint-0.pth", f"checkpoint-{EPOCHS - 1}.pth", LAST, PREVIOUS),
    ]
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(damaged)
    with pytest.raises(UserError, match=f"^--resume: .*{LAST} is not .*{PREVIOUS} is not"):
        main_lpd.main(flags(world, tmp_path, *more))


def test_killed_right_after_a_damaged_checkpoint_was_passed_over(
    world: TinyWorld, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first file after it is complete; --resume names the folder in its own way."""
    output, link = tmp_path / "output", tmp_path / "link"
    link.symlink_to(output)
    line = [*flags(world, output, "--save_steps", 4), "--resume", str(link)]
    with at_step(9, kill), pytest.raises(Killed):
        main_lpd.main(line)
    damage(output / LAST)
    replace = Path.replace

    def die_at_the_last(self: Path, target: Path) -> Path:
        if Path(target).name == LAST:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", die_at_the_last)
        main_lpd.main(line)
    main_lpd.main(line)
    assert same_training(output, uninterrupted)


def test_killed_between_the_two_files_of_an_epoch(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = flags(world, tmp_path, "--epochs", 3, "--save_intermediate_freq", 1)
    written = []

    def write_or_die(content: object, path: Path, previous: Path | None) -> None:
        if len(written) == 3:
            raise Killed
        written.append(path.name)
        atomic_save(content, path, previous)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(saving, "atomic_save", write_or_die)
        main_lpd.main(line)
    main_lpd.main(line)
    assert {path.name for path in tmp_path.glob("checkpoint-[0-9]*.pth")} == {
        f"checkpoint-{epoch}.pth" for epoch in range(3)
    }


def start(processes: int | None, *arguments: object, cold: bool = False) -> subprocess.Popen:
    """A run in the background, in a process group of its own."""
    return start_command(
        *arguments,
        processes=processes,
        launcher=("--signals-to-handle", "SIGTERM,SIGUSR1,SIGINT"),
        cold=cold,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], run: subprocess.Popen, seconds: float = 120) -> None:
    """Until the condition holds or the run ends."""
    deadline = time.monotonic() + seconds
    while not condition() and run.poll() is None:
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.01)


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_two_processes_are_stopped_through_torchrun(
    world: TinyWorld, tmp_path: Path, number: int
) -> None:
    more = ("--save_steps", 2, "--batch_size", 4, "--epochs", 10**4)
    run = start(2, "main_lpd.py", *flags(world, tmp_path, *more), cold=number == signal.SIGINT)
    wait_for(lambda: (tmp_path / LAST).exists(), run)
    os.killpg(run.pid, number)  # as a terminal does
    _, errors = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "main_lpd.py" not in errors.replace("main_lpd.py FAILED", ""), errors
    marker = json.loads((tmp_path / MARKER).read_text())
    content = read_checkpoint(tmp_path / LAST, "test")
    assert marker["signal"] == signal.Signals(number).name
    place = {"epoch": content["epoch"] + 1, "step": content["step_in_epoch"]}
    assert place == {name: marker[name] for name in place}
    assert len(content["epoch_loss"]) == 2


def workers_of(run: subprocess.Popen) -> list[int]:
    """The processes that a launcher has started."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    return list(map(int, children.read_text().split())) if children.exists() else []


def end_at_once(run: subprocess.Popen) -> None:
    """SIGKILL to a launcher and all that it has started."""
    for process in sorted(workers_of(run)):
        os.kill(process, signal.SIGKILL)
    run.kill()
    run.communicate()


def test_killed_at_random_moments(world: TinyWorld, uninterrupted: Path, tmp_path: Path) -> None:
    line, draws = flags(world, tmp_path, "--save_steps", 1), random.Random(0)
    for _ in range(3):
        before = stamp(tmp_path / LAST)
        run = start(None, "main_lpd.py", *line)
        wait_for(lambda before=before: stamp(tmp_path / LAST) != before, run)
        time.sleep(draws.uniform(0, 0.3))  # not to wait for anything: to be anywhere
        end_at_once(run)
    assert "resumed from" in succeed("main_lpd.py", *line).stderr
    assert same_training(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "batch", "more"),
    [
        *((2, 4, ""), (3, 2, ""), (3, 1, "--accum_iter 2")),
        *((4, 2, "--bf16 --grad_checkpointing"), (4, 1, "--accum_iter 2"), (3, 2, "--fsdp")),
    ],
)
def test_processes_are_killed_in_the_first_and_in_a_later_epoch(
    world: TinyWorld, tmp_path: Path, processes: int, batch: int, more: str
) -> None:
    """From three processes on, the order in which gradients are summed decides the last bits."""
    line = ("--epochs", 3, "--save_steps", 1, "--batch_size", batch, *more.split())
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    succeed("main_lpd.py", *flags(world, whole, *line), processes=processes)
    last, first = killed / LAST, killed / "checkpoint-0.pth"  # of the first epoch
    for saved in (lambda: stamp(last) > 0, lambda: stamp(last) > stamp(first) > 0):
        run = start(processes, "main_lpd.py", *flags(world, killed, *line))
        wait_for(saved, run)
        assert run.poll() is None
        end_at_once(run)
    assert read_checkpoint(last, "test")["epoch"] >= 0
    result = succeed("main_lpd.py", *flags(world, killed, *line), processes=processes)
    assert "resumed from" in result.stderr
    assert same_training(killed, whole)


def test_another_number_of_processes_sees_the_same_samples(
    world: TinyWorld, tmp_path: Path
) -> None:
    common = ("--proj_dropout", 0)
    one, changing = tmp_path / "one", tmp_path / "changing"
    main_lpd.main(flags(world, one, *common))
    with at_step(8, ask(signal.SIGTERM)), pytest.raises(SystemExit):
        main_lpd.main(flags(world, changing, *common))
    succeed("main_lpd.py", *flags(world, changing, *common, "--batch_size", 4), processes=2)
    found, expected = logged(changing), logged(one)
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in rows]
        values = [value for _, value in rows]
        assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-4), name
    weights = [read_checkpoint(folder / LAST, "test")["model"] for folder in (changing, one)]
    for name, value in weights[1].items():
        assert (weights[0][name] - value).abs().mean() < 2e-5, name


def test_an_evaluation_that_the_run_was_killed_in_is_made_up_for(
    world: TinyWorld, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--online_eval", "--eval_freq", "2", "--num_images", "3", "--generation_steps", "4"]
    more += ["--feature_extractor", "none", "--group_sizes_list", "auto"]
    evaluate, calls, said = engine_lpd.evaluate, [], []

    def evaluate_or_die(model: torch.nn.Module, *arguments: object) -> None:
        calls.append(model.training)
        if len(calls) == 2:
            said[-1](signal.SIGTERM)
            raise Killed
        evaluate(model, *arguments)

    def leaving_at_once(signals: StopSignals, last_words: Callable[[int], None]) -> nullcontext:
        said.append(last_words)
        return nullcontext()

    monkeypatch.setattr(engine_lpd, "evaluate", evaluate_or_die)
    monkeypatch.setattr(StopSignals, "leaving_at_once", leaving_at_once)
    with pytest.raises(Killed):
        main_lpd.main(flags(world, tmp_path, *more))
    done = [json.loads(path.read_text())["checkpoint"] for path in tmp_path.glob("metrics-*")]
    assert done == ["epoch 0"]
    marker = json.loads((tmp_path / MARKER).read_text())
    assert marker == {"signal": "SIGTERM", "epoch": 3, "step": 0}
    main_lpd.main(flags(world, tmp_path, *more))
    assert len(calls) == 4  # after epochs 0, 2 (twice) and 3
    done = sorted(path.name for path in tmp_path.glob("metrics-*"))
    assert done == ["metrics-0.json", "metrics-2.json", "metrics-3.json"]
    assert same_training(tmp_path, uninterrupted)


def test_a_place_beyond_the_end_of_an_epoch_is_refused(
    world: TinyWorld, uninterrupted: Path, tmp_path: Path
) -> None:
    content = read_checkpoint(uninterrupted / "checkpoint-0.pth", "test")
    atomic_save({**content, "step_in_epoch": STEPS + 1}, tmp_path / LAST)
    message = f"^--resume: .*{LAST} was saved after 7 steps of an epoch, expected at most the 6"
    with pytest.raises(UserError, match=message):
        main_lpd.main(flags(world, tmp_path))


def test_a_first_start_may_name_its_folder_in_two_ways(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main_lpd.main([*flags(world, tmp_path / "new", "--epochs", 1), "--resume", "new"])
    assert (tmp_path / "new" / LAST).exists()
