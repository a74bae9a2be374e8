import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hub.weights import atomic_save
from models.lpd import lpd_tiny
from training import checkpoint
from training.checkpoint import LAST, PREVIOUS, TrainingState, load_pretrained
from util import distributed
from util.errors import UserError


def tiny(**options: int):
    defaults = dict(img_size=16, vqgan_stride=4, vqgan_vocab_size=32, class_num=3)
    return lpd_tiny(**{**defaults, **options})


def fresh(**more: object) -> TrainingState:
    model = tiny()
    more = {"args": argparse.Namespace(output_dir=Path("out")), "global_batch": 8, **more}
    return TrainingState(model, torch.optim.AdamW(model.parameters()), **more)


def stepped(state: TrainingState) -> TrainingState:
    """With moments of every parameter."""
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    return state


def saved(path: Path, **entries: object) -> Path:
    """A checkpoint of 8 images a step, 6 steps into epoch 3."""
    place = {"epoch": 2, "step_in_epoch": 6, "epoch_loss": [1.5, 2.5]}
    atomic_save({**stepped(fresh()).content(), **place, **entries}, path)
    return path


def resume(state: TrainingState, folder: Path) -> Path:
    return checkpoint.load_newest(checkpoint.checkpoints_in(folder), state.restore)


def test_the_place_in_an_epoch_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / LAST)
    for processes, rank, expected in ((2, 0, 1.5), (2, 1, 2.5), (1, 0, 2.0), (4, 3, 2.0)):
        monkeypatch.setattr(distributed, "world_size", lambda processes=processes: processes)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        state = fresh()
        state.restore(path)
        state.join(torch.device("cpu"))
        assert (state.epoch, state.step, state.loss_sum.item()) == (2, 6, expected)


def test_another_global_batch_goes_on_after_as_many_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path / LAST)
    for batch, step in ((4, 12), (16, 3), (10, 4), (100, 0)):
        state = fresh(global_batch=batch)
        state.restore(path)
        assert state.step == step
        assert state.loss_sums == [1.5 * step / 6, 2.5 * step / 6]
    assert "saved with 8 images a step, this run has 10: its epoch goes on after 40" in caplog.text


def test_a_checkpoint_without_a_place_was_saved_between_epochs(tmp_path: Path) -> None:
    content = stepped(fresh()).content()
    for name in ("step_in_epoch", "epoch_loss", "global_batch"):
        del content[name]
    atomic_save({**content, "epoch": 4, "scaler": {"scale": 65536.0}}, tmp_path / LAST)
    state = fresh()
    state.restore(tmp_path / LAST)
    assert (state.epoch, state.step) == (4, 0)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"tokenizer_fingerprint": "a" * 64}, "tokenizer a{12}, expected this run's b{12}"),
        ({"step_in_epoch": -1}, "found -1 steps after epoch 2 with 8 images each"),
        ({"step_in_epoch": "6"}, "found '6' steps"),
        ({"global_batch": 0}, "with 0 images each, .*, expected whole numbers"),
        ({"epoch_loss": []}, r"epoch_loss \[\], expected"),
        ({"epoch_loss": [float("nan")]}, "epoch_loss .*nan.*, expected .* finite losses"),
        ({"epoch": -2}, "after epoch -2"),
    ],
)
def test_another_tokenizer_or_a_place_that_makes_no_sense_is_refused(
    tmp_path: Path, entries: dict, message: str
) -> None:
    path = saved(tmp_path / LAST, **entries)
    with pytest.raises(UserError, match=f"^--resume: .*{message}"):
        fresh(tokenizer_fingerprint="b" * 64).restore(path)
    if "tokenizer_fingerprint" in entries:  # which a run without a tokenizer does not compare
        fresh(tokenizer_fingerprint=None).restore(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.update(state={}), r"holds no finite step of shape \(\), expected it"),
        (lambda found: found["state"][5].pop("exp_avg"), "holds no finite exp_avg of"),
        (lambda found: found["state"][5].update(exp_avg_sq="ab"), "no finite exp_avg_sq"),
        (lambda found: found["state"][5].update(exp_avg=torch.zeros(7)), "no finite exp_avg of"),
        (lambda found: found["state"][5]["exp_avg_sq"].mul_(torch.nan), "no finite exp_avg_sq"),
        (lambda found: found.update(param_groups=[]), "optimizer state does not fit this model"),
        (lambda found: found.pop("state"), "optimizer state does not fit this model"),
        (lambda found: found["param_groups"][0]["params"].pop(), "does not fit this model"),
    ],
)
def test_an_incomplete_optimizer_is_refused(
    tmp_path: Path, change: Callable[[dict], object], message: str
) -> None:
    optimizer = stepped(fresh()).optimizer.state_dict()
    change(optimizer)
    with pytest.raises(UserError, match=f"^--resume: .*{message}"):
        fresh().restore(saved(tmp_path / LAST, optimizer=optimizer))


def test_how_the_optimizer_computes_is_for_the_flags_to_say(tmp_path: Path) -> None:
    optimizer = stepped(fresh()).optimizer.state_dict()
    optimizer["param_groups"][0].update(weight_decay=7.0, betas="ab")
    del optimizer["param_groups"][0]["eps"]
    state = fresh()
    state.restore(saved(tmp_path / LAST, optimizer=optimizer))
    (group,) = state.optimizer.param_groups
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.01, (0.9, 0.999), 1e-8)
    stepped(state)


@pytest.mark.parametrize("form", [dict, argparse.Namespace])
def test_other_data_or_another_seed_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, form: type
) -> None:
    path = saved(tmp_path / LAST, num_images=48, args=form(seed=1))
    for num_images, seed, warned in (
        *((48, 1, []), (None, None, []), (40, 1, ["images in the data 48, this run has 40"])),
        (48, 2, ["--seed 1, this run has 2"]),
    ):
        caplog.clear()
        state = fresh(num_images=num_images)
        state.args = argparse.Namespace(**({"seed": seed} if seed else {}))
        state.restore(path)
        assert len(caplog.messages) == len(warned)
        assert all(words in caplog.text for words in warned)


def test_the_one_before_stands_in_for_a_damaged_or_missing_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path / PREVIOUS)
    saved(tmp_path / LAST, step_in_epoch=7)
    assert resume(fresh(), tmp_path) == tmp_path / LAST
    caplog.set_level(logging.WARNING)
    content = bytearray((tmp_path / LAST).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / LAST).write_bytes(content)
    for _ in range(2):
        state = fresh()
        assert resume(state, tmp_path) == tmp_path / PREVIOUS
        assert state.step == 6
        assert len(caplog.records) == 1  # nobody is warned of a missing one
        (tmp_path / LAST).unlink(missing_ok=True)


def test_a_sound_checkpoint_of_another_run_is_not_passed_over(tmp_path: Path) -> None:
    saved(tmp_path / PREVIOUS)
    saved(tmp_path / LAST, model={})
    with pytest.raises(UserError, match=f"{LAST}: weight fake_latent is missing"):
        resume(fresh(), tmp_path)


def test_processes_that_read_different_files_do_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = fresh()
    state.restore(saved(tmp_path / LAST))
    monkeypatch.setattr(distributed, "gather", lambda place: [place, (2, 0)])
    with pytest.raises(UserError, match=r"--resume: .*\[\(2, 0\), \(2, 6\)\] on different"):
        state.join(torch.device("cpu"))


def test_what_is_no_training_checkpoint_is_named(tmp_path: Path) -> None:
    for content, message in (
        ({"model": [1, 2]}, "weights are a list, expected a dictionary"),
        ({"model": tiny().state_dict()}, "holds no 'optimizer' entry"),
    ):
        atomic_save(content, tmp_path / LAST)
        with pytest.raises(UserError, match=f"^--resume: .*{LAST}: {message}"):
            fresh().restore(tmp_path / LAST)


def test_another_grid_needs_resize_and_another_size_is_refused(tmp_path: Path) -> None:
    small, large = tiny(), tiny(img_size=32)
    atomic_save({"model": small.state_dict()}, tmp_path / "x.pth")
    for resize in (False, True):
        with pytest.raises(UserError, match=r"class_emb.weight has shape \(3, 192\)"):
            load_pretrained(tiny(class_num=4), tmp_path / "x.pth", resize=resize)
    with pytest.raises(UserError, match=r"pos_embed has shape \(1, 17, 192\), expected \(1, 65"):
        load_pretrained(large, tmp_path / "x.pth")
    load_pretrained(large, tmp_path / "x.pth", resize=True)
    assert torch.equal(large.pos_embed, checkpoint.resize_pos_embed(small.pos_embed, 64))
    assert torch.equal(large.head.weight, small.head.weight)
