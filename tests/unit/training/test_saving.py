"""Checkpoints written beside training: what is saved is the moment of the call, whole or not."""

import logging
import os
import re
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from hub.weights import atomic_save, read_checkpoint
from training import checkpoint as saving
from training.checkpoint import LAST, PREVIOUS, CheckpointSaver
from util.errors import UserError


def content(value: float = 0.0) -> dict:
    state, groups = {0: {"step": torch.tensor(float(value))}}, [{"betas": (0, 1)}]
    weights, optimizer = torch.full((50, 10), float(value)), {"state": state, "groups": groups}
    return {"model": {"w": weights}, "optimizer": optimizer, "epoch": int(value)}


def value_of(path: Path) -> float:
    found = read_checkpoint(path, "test")
    assert found["model"]["w"].unique().numel() == 1
    assert found["optimizer"]["state"][0]["step"] == found["model"]["w"][0, 0] == found["epoch"]
    assert found["optimizer"]["groups"] == [{"betas": (0, 1)}]
    return float(found["epoch"])


def test_the_moment_of_the_call_is_saved_while_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def wait_and_save(*arguments: object) -> None:
        assert go.wait(30)
        atomic_save(*arguments)

    monkeypatch.setattr(saving, "atomic_save", wait_and_save)
    state = content(1)
    with CheckpointSaver(tmp_path) as saver:
        saver.save(state, [LAST, "checkpoint-7.pth"])
        state["model"]["w"] += 1  # the next step, while nothing is written yet
        assert not list(tmp_path.iterdir())
        go.set()
        saver.wait()
        assert value_of(tmp_path / LAST) == value_of(tmp_path / "checkpoint-7.pth") == 1


@pytest.mark.parametrize("links", [True, False])
def test_the_last_two_are_kept_in_the_memory_of_one(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not links:  # some file systems have no hard ones
        monkeypatch.setattr(os, "link", Mock(side_effect=OSError("no links here")))
    with caplog.at_level(logging.INFO), CheckpointSaver(tmp_path) as saver:
        saver.reserve(content())
        memory = {key: buffer.data_ptr() for key, buffer in saver._buffers.items()}
        for value in (1, 2, 3):
            saver.save(content(value), [LAST])  # waits for the one before
        saver.wait()
        assert memory == {key: buffer.data_ptr() for key, buffer in saver._buffers.items()}
    assert value_of(tmp_path / LAST) == 3
    assert value_of(tmp_path / PREVIOUS) == 2
    assert len(list(tmp_path.iterdir())) == 2
    line = r"saved checkpoint-last.pth in \d+\.\d s beside training; the step waited \d+\.\d\d s"
    assert len(re.findall(line, caplog.text)) == 3


def test_a_damaged_last_one_does_not_take_the_place_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / LAST).write_bytes(b"damaged")
    atomic_save(content(1), tmp_path / PREVIOUS)
    with CheckpointSaver(tmp_path, last_is_good=False) as saver:
        saver.save(content(2), [LAST])
        saver.wait()
        assert (value_of(tmp_path / PREVIOUS), value_of(tmp_path / LAST)) == (1, 2)
        saver.save(content(3), [LAST])
        saver.wait()
    assert (value_of(tmp_path / PREVIOUS), value_of(tmp_path / LAST)) == (2, 3)


def test_a_failed_write_is_known_before_the_next(tmp_path: Path) -> None:
    with CheckpointSaver(tmp_path / "missing") as saver:
        assert not saver.failed
        saver.save(content(), [LAST])
        with pytest.raises(OSError):
            saver._writing.result(30)
        assert saver.failed
        with pytest.raises(UserError, match="^--output_dir: .*No such file or directory"):
            saver.wait()
        assert not saver.failed
