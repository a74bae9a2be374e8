"""Training through the real command: process count, and where it may start from."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main_cache
import main_lpd
from dataset.batches import epoch_samples
from dataset.token_cache import open_cache
from hub.weights import read_checkpoint
from tests.commands import opens_anywhere, run_command, succeed
from tests.integration.test_resume import logged
from tests.integration.tiny_world import TinyWorld, write_images
from training.checkpoint import LAST
from util.errors import UserError


def train(world: TinyWorld, output: Path, processes: int, *more: object) -> Path:
    succeed("main_lpd.py", *world.train_flags(output), *more, processes=processes)
    return output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / LAST, "test")["model"]


def assert_alike(folder: Path, expected: Path, names: str = "loss lr grad_norm") -> None:
    """Curves and weights are the same, but for rounding."""
    found, wanted = logged(folder), logged(expected)
    for name in names.split():
        values = [value for _, value in wanted[f"train/{name}"]]
        rel = 1e-4 if name == "grad_norm" else 1e-5
        assert [v for _, v in found[f"train/{name}"]] == pytest.approx(values, rel=rel), name
    others = weights(folder)
    for name, value in weights(expected).items():
        # Adam turns rounding of tiny gradients into steps of up to lr: compare on that scale.
        assert (others[name] - value).abs().max() < 1e-3, name
        assert (others[name] - value).abs().mean() < 2e-5, name


def test_the_global_batch_may_be_split_over_processes_and_passes(
    world: TinyWorld, tmp_path: Path
) -> None:
    common = ["--epochs", 2, "--proj_dropout", 0, "--batch_size"]
    one = train(world, tmp_path / "one", 1, *common, 16)
    losses = [loss for _, loss in logged(one)["train/loss"]]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert_alike(train(world, tmp_path / "two", 2, *common, 8), one)
    assert_alike(train(world, tmp_path / "four", 2, *common, 4, "--accum_iter", 2), one)


@pytest.mark.slow
def test_sharded_training_is_the_same_training_with_the_same_files(
    world: TinyWorld, tmp_path: Path
) -> None:
    flags = ["--epochs", 2, "--batch_size", 4, "--accum_iter", 2, "--proj_dropout", 0]
    flags += ["--save_intermediate_freq", 1]
    whole = train(world, tmp_path / "whole", 2, *flags)
    sharded = train(world, tmp_path / "sharded", 2, *flags, "--fsdp")
    assert opens_anywhere(sharded / LAST, whole / LAST)
    assert_alike(sharded, whole)
    moments, wanted = (
        read_checkpoint(folder / LAST, "test")["optimizer"]["state"] for folder in (sharded, whole)
    )
    assert moments.keys() == wanted.keys()
    for index, state in wanted.items():
        assert moments[index]["exp_avg"].shape == state["exp_avg"].shape
        assert (moments[index]["exp_avg"] - state["exp_avg"]).abs().max() < 1e-4
    # A sharded run goes on from a file of an unsharded one.
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    (whole / "checkpoint-0.pth").rename(resumed / LAST)
    train(world, resumed, 2, *flags, "--resume", resumed, "--fsdp")
    assert_alike(resumed, sharded, "")


def test_checkpoint_holds_what_the_published_form_holds(world: TinyWorld, tmp_path: Path) -> None:
    main_lpd.main([*world.train_flags(tmp_path), "--epochs", "1", "--batch_size", "16"])
    assert {path.name for path in tmp_path.glob("*.pth")} == {"checkpoint-0.pth", LAST}
    content = read_checkpoint(tmp_path / "checkpoint-0.pth", "test")
    assert {"model", "optimizer", "epoch", "args"} <= set(content)
    assert (content["epoch"], content["args"]["model"]) == (0, "lpd_tiny")
    assert opens_anywhere(*tmp_path.glob("*.pth"))
    # Betas, and decay on everything but biases and one-dimensional parameters.
    groups = content["optimizer"]["param_groups"]
    assert all((*group["betas"], group["eps"]) == (0.9, 0.95, 1e-8) for group in groups)
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.02]
    decayed = next(group for group in groups if group["weight_decay"] > 0)["params"]
    assert len(decayed) == sum(value.ndim >= 2 for value in content["model"].values())


def test_images_encoded_on_the_fly_equal_cached_tokens(world: TinyWorld, tmp_path: Path) -> None:
    images, cache, cached, fly = (tmp_path / name for name in ("images", "cache", "cached", "fly"))
    write_images(images)
    made = ["--data_path", images, "--cached_path", cache, "--img_size", 16, "--device", "cpu"]
    made += ["--vqgan_path", world.tokenizer, "--num_workers", 0]
    main_cache.main(list(map(str, made)))
    flags = ["--epochs", "2", "--batch_size", "2", "--flip_prob", "0.5"]
    main_lpd.main([*world.train_flags(cached), "--cached_path", str(cache), *flags])
    flags += ["--data_path", str(images), "--num_workers", "2"]
    main_lpd.main([flag for flag in world.train_flags(fly) if flag != "--use_cached"] + flags)
    expected = [loss for _, loss in logged(cached)["train/loss"]]
    assert [v for _, v in logged(fly)["train/loss"]] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("cached", [True, False])
def test_bad_data_of_one_process_ends_all_in_one_line(
    world: TinyWorld, tmp_path: Path, cached: bool
) -> None:
    """In the middle of a run, while the other process waits for its gradients."""
    data, output = tmp_path / "data", tmp_path / "out"
    flags = [*world.train_flags(output), "--batch_size", 4, "--save_steps", 1, "--class_num", 4]
    if cached:
        for number, label in enumerate(open_cache(world.cache).labels):
            file = data / f"class{label}" / f"{number:02d}.npz"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, indices=np.arange(16), indices_flip=np.arange(16))
        flags += ["--cached_path", data]
    else:
        for folder in range(4):
            write_images(data / str(folder))
        flags.remove("--use_cached")
        flags += ["--data_path", data, "--num_workers", 0]
    files = sorted(path for path in data.rglob("*") if path.is_file())
    # Seen by the second process, in the last step of the first epoch.
    (*_, last) = epoch_samples(len(files), 0, 8, seed=1)
    seen = files[last.reshape(2, 4)[1, 2]]
    seen.write_bytes(seen.read_bytes()[:40])
    named = f"error: {'--cached_path: ' * cached}{seen}"
    said = run_command("main_lpd.py", *flags, processes=2).stderr
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith(named), said
    assert 'main_lpd.py", line' not in said
    assert len(re.findall(r"exitcode\s*: 2 ", said)) == 2, said
    # No step with anything else in the place of that image was saved.
    assert all(read_checkpoint(path, "test")["epoch"] == -1 for path in output.glob("*.pth"))


def test_online_evaluation_shows_the_samples_of_a_fixed_seed(
    world: TinyWorld, tmp_path: Path
) -> None:
    flags = ["--epochs", "2", "--online_eval", "--eval_freq", "1", "--num_images", "6"]
    flags += ["--generation_steps", "4", "--feature_extractor", "none"]
    shown = []
    for name, more in (("learning", []), ("still", ["--lr", "1e-30"])):
        main_lpd.main([*world.train_flags(tmp_path / name), *flags, *more])
        events = EventAccumulator(str(tmp_path / name))
        events.Reload()
        first, second = events.Images("eval/samples")
        assert (first.step, second.step) == (2, 5)
        assert (first.height, first.width) == (2 * 16 + 2, 3 * 16 + 2 * 2)
        shown.append((first.encoded_image_string, second.encoded_image_string))
    assert shown[0][1] != shown[1][1] == shown[1][0]  # where nothing was learned


def test_wandb_gets_what_tensorboard_gets(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the client, told to mirror TensorBoard; one line where there is none."""
    told = []
    client = SimpleNamespace(
        init=lambda **options: told.append(options), finish=lambda: told.append("finished")
    )
    monkeypatch.setitem(sys.modules, "wandb", client)
    flags = ["--epochs", "1", "--use_wandb", "--wandb_project", "p", "--wandb_run_name", "n"]
    main_lpd.main([*world.train_flags(tmp_path / "run"), *flags])
    options, end = told
    assert (options["project"], options["name"], end) == ("p", "n", "finished")
    assert options["sync_tensorboard"] is True and options["config"]["epochs"] == 1
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--use_wandb: the wandb package is not installed"):
        main_lpd.main([*world.train_flags(tmp_path / "new"), "--use_wandb"])
