"""TensorBoard's files, read in the order in which they were begun."""

import time
from pathlib import Path

import pytest

from tests.integration.test_resume import logged
from training.scalars import ScalarLog


def test_runs_that_begin_in_one_second_or_before_the_last_are_read_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard numbers the files of a process, and 10 sorts before 9; clocks are set back."""
    for step in range(13):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda step=step: 1.7e9 - 3600 * (step == 12))
            scalars = ScalarLog(tmp_path, purge_step=step)
            scalars.add(step, {"loss": step})
            scalars.add(step + 1, {"loss": -1})  # dropped by the next
            scalars.close()
    assert logged(tmp_path)["loss"] == [*((step, step) for step in range(13)), (13, -1)]
