import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training.scalars import ScalarLog
from visualization.scalar_history import History, read_history

EPOCH = 10  # steps


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., History]:
    """Logs parts of a run between two steps; their losses are 1, 2, ..., to see whose they are."""
    # A second later at every look: event files are told apart by the second.
    clock = iter(range(1_700_000_000, 1_800_000_000))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))

    def write(*parts: tuple[int, int, int | None, int]) -> History:
        for number, (start, stop, purge, every) in enumerate(parts, start=1):
            log = ScalarLog(tmp_path, purge_step=purge)
            for step in range(start, stop):
                if step % every == 0:
                    log.add(step, {"train/loss": number, "train/lr": step / 100})
                if (step + 1) % EPOCH == 0:
                    log.add(step, {"epoch/loss": number, "eval/fid-5K": 100 - step})
            log.close()
        return read_history(tmp_path)

    return write


def steps_and_values(history: History, tag: str) -> dict[int, float]:
    curve = history.curves[tag]
    return dict(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))


def test_a_run_and_an_evaluation_outside_of_it(run: Callable, tmp_path: Path) -> None:
    history = run((0, 30, None, 4))
    assert history.resumed == [] and history.final == {} and history.steps_per_epoch == EPOCH
    for fid in (5, 3):
        log = ScalarLog(tmp_path)
        log.add(0, {"eval/fid-5K": fid, "eval/num_images-5K": 5000})
        log.close()
    history = read_history(tmp_path)
    assert history.final == {"eval/fid-5K": 3, "eval/num_images-5K": 5000}
    assert steps_and_values(history, "train/loss") == dict.fromkeys(range(0, 30, 4), 1)
    np.testing.assert_allclose(history.curves["train/lr"].values, np.arange(0, 30, 4) / 100)
    assert steps_and_values(history, "epoch/loss") == {9: 1, 19: 1, 29: 1}
    assert steps_and_values(history, "eval/fid-5K") == {9: 91, 19: 81, 29: 71}


def test_a_resumed_run_is_one_curve(run: Callable) -> None:
    # The first died after its checkpoint at step 15, the second before it had done an epoch.
    history = run((0, 28, None, 4), (15, 17, 15, 4), (15, 40, 15, 4), (40, 45, 40, 4))
    losses = {**dict.fromkeys((0, 4, 8, 12), 1), **dict.fromkeys(range(16, 40, 4), 3), 40: 4, 44: 4}
    assert steps_and_values(history, "train/loss") == losses
    assert steps_and_values(history, "epoch/loss") == {9: 1, 19: 3, 29: 3, 39: 3}
    assert history.resumed == [15, 40] and history.steps_per_epoch == EPOCH


@pytest.mark.parametrize("purge", [None, 0])
def test_a_run_begun_anew_in_the_folder_counts(run: Callable, purge: int | None) -> None:
    history = run((0, 39, None, 3), (0, 8, purge, 4))  # no epoch and no score so far
    assert history.curves.keys() == {"train/loss", "train/lr"}
    assert steps_and_values(history, "train/loss") == {0: 2, 4: 2}
    assert history.resumed == [] and history.steps_per_epoch is None


def test_a_file_cut_short_counts_as_far_as_it_goes(run: Callable, tmp_path: Path) -> None:
    run((0, 400, None, 4))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    steps = read_history(tmp_path).curves["train/loss"].steps
    assert 10 < len(steps) < 90 and steps.tolist() == list(range(0, 4 * len(steps), 4))


def test_numbers_that_are_none_leave_a_gap(tmp_path: Path) -> None:
    log = ScalarLog(tmp_path)
    for step, loss in enumerate((3, float("nan"), float("inf"), 2)):
        log.add(step, {"train/loss": loss})
    log.close()
    values = read_history(tmp_path).curves["train/loss"].values
    np.testing.assert_array_equal(values, [3, np.nan, np.nan, 2])


def test_folders_without_scalars_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.out.tfevents.0.pipe")  # opening it would wait for ever
    (tmp_path / "events.out.tfevents.1.junk").write_bytes(b"no event" * 100)
    with pytest.raises(ValueError, match="found 1 TensorBoard files without scalars"):
        read_history(tmp_path)
