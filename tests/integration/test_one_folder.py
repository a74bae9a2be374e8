"""A folder serves one run at a time, and nobody's results go without a word."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engine_lpd
import main_lpd
from hub.weights import read_checkpoint
from tests.commands import run_command
from tests.integration.test_evaluation import images, stacked
from tests.integration.test_resume import flags as resuming
from tests.integration.test_resume import logged, start, wait_for, workers_of
from tests.integration.tiny_world import TinyWorld
from training.checkpoint import LAST
from util.errors import UserError
from util.folder_lock import folder_lock
from util.images import MADE_BY

IN_USE = r"^--output_dir: .* is in use by another run \(process \d+ on .+\), expected a folder for"


def training(world: TinyWorld, output: Path) -> list[str]:
    return [*world.train_flags(output), "--epochs", "2", "--save_intermediate_freq", "1"]


@pytest.mark.parametrize(
    ("kind", "flags"),
    [("training", training), ("training", resuming), ("evaluation", TinyWorld.eval_flags)],
)
def test_the_second_run_is_refused_and_leaves_no_trace(
    world: TinyWorld,
    tmp_path: Path,
    kind: str,
    flags: Callable[[TinyWorld, Path], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = [f"--{name}={tmp_path / 'missing'}" for name in ("vqgan_path", "cached_path")]
    (tmp_path / "interrupted.json").write_text("of the first")
    with folder_lock(tmp_path, kind):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UserError, match=IN_USE):  # before data and model are loaded
            main_lpd.main([*flags(world, tmp_path), *nothing])
        with monkeypatch.context() as patch, pytest.raises(UserError, match=IN_USE):
            patch.setattr(main_lpd, "require_free", lambda *_: None)  # it came meanwhile
            main_lpd.main(flags(world, tmp_path))
        assert sorted(tmp_path.iterdir()) == before
        if flags == training:  # a folder may be evaluated meanwhile
            main_lpd.main(world.eval_flags(tmp_path))
            assert len(images(tmp_path)) == 9


def test_an_image_counts_as_kept_only_if_these_settings_made_it(
    world: TinyWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first, second = tmp_path / "first", tmp_path / "second"
    main_lpd.main([*world.eval_flags(first), "--seed", "1"])
    main_lpd.main([*world.eval_flags(second), "--seed", "2"])
    expected, plain = stacked(second), second / "images" / "00004.png"
    assert not np.array_equal(stacked(first), expected)
    shutil.copy(first / "images" / "00002.png", second / "images" / "00002.png")
    Image.fromarray(expected[4]).save(plain)  # as another program writes it
    main_lpd.main([*world.eval_flags(second), "--seed", "2", "--save_npz"])
    assert "7 of 9 images are there already" in caplog.text
    assert np.array_equal(stacked(second), expected)
    made_by = {Image.open(path).info[MADE_BY] for path in (second / "images").iterdir()}
    assert len(made_by) == 1
    with np.load(second / "samples.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["arr_0"], expected)


def test_no_archive_is_made_of_images_that_another_run_wrote_meanwhile(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    main_lpd.main([*world.eval_flags(other), "--seed", "3"])
    evaluate = engine_lpd.evaluate

    def disturbed(*arguments: object) -> None:
        evaluate(*arguments)
        shutil.copy(other / "images" / "00003.png", tmp_path / "out" / "images" / "00003.png")

    monkeypatch.setattr(engine_lpd, "evaluate", disturbed)
    with pytest.raises(UserError, match=r"^--output_dir: .*00003.png is damaged or of other set"):
        main_lpd.main([*world.eval_flags(tmp_path / "out"), "--save_npz"])
    assert not list((tmp_path / "out").glob("*samples.npz*"))


def test_training_writes_over_no_checkpoints_unless_told_to(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    main_lpd.main(training(world, output))
    (output / "metrics-0.json").write_text("{}")
    before = {path: path.read_bytes() for path in output.glob("*-*") if path.is_file()}
    expected = f"expected --resume {output} to go on from it, another folder, or --overwrite"
    message = rf"^--output_dir: {output} holds checkpoint-0.pth, {expected}"
    elsewhere.mkdir()
    for more in ([], ["--resume", str(elsewhere)], ["--pretrained_ckpt", str(output / LAST)]):
        with pytest.raises(UserError, match=message):
            main_lpd.main([*training(world, output), *more])

    def fail(*arguments: object) -> None:
        raise UserError("--log_dir: full")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="^--log_dir: full"):
        patch.setattr(main_lpd, "ScalarLog", fail)  # the last that may be bad input
        main_lpd.main([*training(world, output), "--overwrite"])
    assert before == {path: path.read_bytes() for path in before}
    main_lpd.main([*training(world, output), "--epochs", "3", "--resume", str(output)])
    assert (output / "checkpoint-2.pth").exists()

    main_lpd.main([*training(world, output), "--epochs", "1", "--overwrite"])
    found = sorted(path.name for path in output.glob("*-*.*") if "events" not in path.name)
    assert found == ["checkpoint-0.pth", LAST]
    assert read_checkpoint(output / LAST, "test")["epoch"] == 0
    assert [step for step, _ in logged(output)["train/loss"]] == [0, 1, 2]  # the new run alone


def test_what_another_run_saves_meanwhile_is_not_written_over(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading a checkpoint and taking the folder another run may save, and end."""
    line, start_together = resuming(world, tmp_path, "--epochs", 1), main_lpd.distributed.start

    def save_and_start(*arguments: object) -> AbstractContextManager[None]:
        (tmp_path / LAST).write_bytes(b"of another run")
        return start_together(*arguments)

    monkeypatch.setattr(main_lpd.distributed, "start", save_and_start)
    with pytest.raises(UserError, match=r"^--output_dir: .*: another run saved there while this"):
        main_lpd.main(line)
    assert (tmp_path / LAST).read_bytes() == b"of another run"


@pytest.mark.slow
def test_workers_that_outlive_their_launcher_keep_others_out(
    world: TinyWorld, tmp_path: Path
) -> None:
    line = resuming(world, tmp_path, "--save_steps", 1, "--batch_size", 4, "--epochs", 10**4)
    run = start(2, "main_lpd.py", *line)
    wait_for(lambda: (tmp_path / LAST).exists(), run)
    workers = workers_of(run)
    run.kill()
    run.wait()  # not for its output, which the workers hold open
    refused = run_command("main_lpd.py", *line, processes=2)
    assert refused.stderr.count("is in use by another run (process ") == 1, refused.stderr
    assert refused.returncode == 1 and 'main_lpd.py", line' not in refused.stderr
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    (tmp_path / LAST).unlink()
    again = start(None, "main_lpd.py", *line)
    wait_for(lambda: (tmp_path / LAST).exists(), again)
    again.send_signal(signal.SIGINT)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 130, errors
    assert json.loads((tmp_path / "interrupted.json").read_text())["signal"] == "SIGINT"
