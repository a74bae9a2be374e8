import os
from pathlib import Path

import numpy as np
import pytest

from training.scalars import ScalarLog
from visualization.scalar_history import read_history

EPOCH = 10  # steps


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second later at every look: event files are told apart by the second."""
    import time

    seconds = iter(range(1_700_000_000, 1_800_000_000))
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))


def write_part(
    folder: Path, start: int, stop: int, number: float, purge: int | None, every: int = 4
) -> None:
    """What a run logs between two steps; its losses are its number, so that one sees whose."""
    log = ScalarLog(folder, purge_step=purge)
    for step in range(start, stop):
        if step % every == 0:
            log.add(step, {"train/loss": number, "train/lr": step / 100})
        if (step + 1) % EPOCH == 0:
            log.add(step, {"epoch/loss": number, "eval/fid-5K": 100 - step})
    log.close()


def test_one_run(clock: None, tmp_path: Path) -> None:
    write_part(tmp_path, 0, 30, 1, None)
    history = read_history(tmp_path)
    assert history.curves["train/loss"].steps.tolist() == list(range(0, 30, 4))
    np.testing.assert_allclose(history.curves["train/lr"].values, np.arange(0, 30, 4) / 100)
    assert history.curves["epoch/loss"].steps.tolist() == [9, 19, 29]
    assert history.curves["eval/fid-5K"].values.tolist() == [91, 81, 71]
    assert history.steps_per_epoch == EPOCH
    assert history.resumed == [] and history.final == {}


def test_a_resumed_run_is_one_curve(clock: None, tmp_path: Path) -> None:
    write_part(tmp_path, 0, 28, 1, None)  # died after its checkpoint at step 15
    write_part(tmp_path, 15, 17, 2, 15)  # died before it had done an epoch
    write_part(tmp_path, 15, 40, 3, 15)
    write_part(tmp_path, 40, 45, 4, 40)
    history = read_history(tmp_path)
    losses = history.curves["train/loss"]
    assert losses.steps.tolist() == list(range(0, 45, 4))
    assert losses.values.tolist() == [1] * 4 + [3] * 6 + [4] * 2
    assert history.curves["epoch/loss"].steps.tolist() == [9, 19, 29, 39]
    assert history.curves["epoch/loss"].values.tolist() == [1, 3, 3, 3]
    assert history.resumed == [15, 40]
    assert history.steps_per_epoch == EPOCH


def test_what_an_abandoned_attempt_did_later_is_dropped(clock: None, tmp_path: Path) -> None:
    write_part(tmp_path, 0, 39, 1, None)
    write_part(tmp_path, 15, 18, 2, 15)
    history = read_history(tmp_path)
    assert history.curves["train/loss"].values.tolist() == [1, 1, 1, 1, 2]
    assert history.curves["epoch/loss"].steps.tolist() == [9]


def test_a_run_begun_anew_in_the_folder_counts(clock: None, tmp_path: Path) -> None:
    write_part(tmp_path, 0, 39, 1, None, every=3)
    write_part(tmp_path, 0, 25, 2, None)
    history = read_history(tmp_path)
    assert history.curves["train/loss"].steps.tolist() == list(range(0, 25, 4))
    assert set(history.curves["train/loss"].values) == {2}
    assert history.curves["epoch/loss"].steps.tolist() == [9, 19]
    assert history.resumed == []


def test_nothing_of_a_run_stays_that_was_begun_anew(clock: None, tmp_path: Path) -> None:
    write_part(tmp_path, 0, 39, 1, None)
    write_part(tmp_path, 0, 8, 2, None)  # no epoch and no score so far
    curves = read_history(tmp_path).curves
    assert curves.keys() == {"train/loss", "train/lr"}
    assert curves["train/loss"].steps.tolist() == [0, 4]


def test_an_evaluation_outside_of_training_leaves_the_curves_alone(
    clock: None, tmp_path: Path
) -> None:
    write_part(tmp_path, 0, 30, 1, None)
    for fid in (5, 3):
        log = ScalarLog(tmp_path)
        log.add(0, {"eval/fid-5K": fid, "eval/num_images-5K": 5000})
        log.close()
    history = read_history(tmp_path)
    assert history.curves["eval/fid-5K"].steps.tolist() == [9, 19, 29]
    assert history.final == {"eval/fid-5K": 3, "eval/num_images-5K": 5000}


def test_a_file_cut_short_counts_as_far_as_it_goes(clock: None, tmp_path: Path) -> None:
    write_part(tmp_path, 0, 400, 1, None)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    steps = read_history(tmp_path).curves["train/loss"].steps
    assert 10 < len(steps) < 90 and steps.tolist() == list(range(0, 4 * len(steps), 4))


def test_numbers_that_are_none_leave_a_gap(clock: None, tmp_path: Path) -> None:
    log = ScalarLog(tmp_path)
    for step, loss in enumerate((3, float("nan"), float("inf"), 2)):
        log.add(step, {"train/loss": loss})
    log.close()
    values = read_history(tmp_path).curves["train/loss"].values
    np.testing.assert_array_equal(values, [3, np.nan, np.nan, 2])
    assert read_history(tmp_path).steps_per_epoch is None


def test_folders_without_scalars_are_refused(clock: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no is not a folder, expected that of a training run"):
        read_history(tmp_path / "no")
    with pytest.raises(ValueError, match="found no such files, expected TensorBoard files"):
        read_history(tmp_path)
    os.mkfifo(tmp_path / "events.out.tfevents.0.pipe")  # opening it would wait for ever
    (tmp_path / "events.out.tfevents.1.junk").write_bytes(b"no event" * 100)
    with pytest.raises(ValueError, match="found 1 TensorBoard files without scalars"):
        read_history(tmp_path)
