"""Training through the real command: process count, resuming, and where it may start from."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main_lpd
from dataset.batches import epoch_samples
from dataset.token_cache import open_cache
from hub.weights import read_checkpoint
from tests.commands import opens_anywhere, run_command, succeed
from tests.integration.tiny_world import TinyWorld
from training.checkpoint import LAST, resize_pos_embed
from util.errors import UserError


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "checkpoint-last.pth", "test")["model"]


def logged(folder: Path, name: str) -> list[float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


def test_the_global_batch_may_be_split_over_processes_and_passes(
    world: TinyWorld, tmp_path: Path
) -> None:
    one, two, four = tmp_path / "one", tmp_path / "two", tmp_path / "four"
    common = ["--epochs", "2", "--proj_dropout", "0"]
    succeed("main_lpd.py", *world.train_flags(one), *common, "--batch_size", "16")
    succeed("main_lpd.py", *world.train_flags(two), *common, "--batch_size", "8", processes=2)
    passes = ["--batch_size", "4", "--accum_iter", "2"]
    succeed("main_lpd.py", *world.train_flags(four), *common, *passes, processes=2)
    losses = logged(one, "train/loss")
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    for split in (two, four):
        assert logged(split, "train/loss") == pytest.approx(losses, rel=1e-5)
        assert logged(split, "train/lr") == pytest.approx(logged(one, "train/lr"))
        for name, value in weights(one).items():
            # Adam turns rounding of tiny gradients into steps of up to lr: compare on that scale.
            assert (weights(split)[name] - value).abs().max() < 1e-3, name
            assert (weights(split)[name] - value).abs().mean() < 2e-5, name


@pytest.mark.slow
def test_sharded_training_is_the_same_training_with_the_same_files(
    world: TinyWorld, tmp_path: Path
) -> None:
    whole, sharded, resumed = (tmp_path / name for name in ("whole", "sharded", "resumed"))
    flags = ["--epochs", "2", "--batch_size", "4", "--accum_iter", "2", "--proj_dropout", "0"]
    flags += ["--save_intermediate_freq", "1"]
    succeed("main_lpd.py", *world.train_flags(whole), *flags, processes=2)
    succeed("main_lpd.py", *world.train_flags(sharded), *flags, "--fsdp", processes=2)
    expected = read_checkpoint(whole / LAST, "test")
    found = read_checkpoint(sharded / LAST, "test")
    assert opens_anywhere(sharded / LAST, whole / LAST)
    assert logged(sharded, "train/loss") == pytest.approx(logged(whole, "train/loss"), rel=1e-5)
    assert logged(sharded, "train/grad_norm") == pytest.approx(
        logged(whole, "train/grad_norm"), rel=1e-4
    )
    assert found["model"].keys() == expected["model"].keys()
    for name, value in expected["model"].items():
        assert (found["model"][name] - value).abs().mean() < 2e-5, name
    moments, wanted = found["optimizer"]["state"], expected["optimizer"]["state"]
    assert moments.keys() == wanted.keys()
    for index, state in wanted.items():
        assert moments[index]["exp_avg"].shape == state["exp_avg"].shape
        assert (moments[index]["exp_avg"] - state["exp_avg"]).abs().max() < 1e-4
    # A sharded run goes on from a file of an unsharded one.
    resumed.mkdir()
    (whole / "checkpoint-0.pth").rename(resumed / LAST)
    flags += ["--resume", str(resumed)]
    succeed("main_lpd.py", *world.train_flags(resumed), *flags, "--fsdp", processes=2)
    for name, value in weights(resumed).items():
        assert (found["model"][name] - value).abs().mean() < 2e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("processes", [None, 2])
def test_resuming_at_an_epoch_equals_never_stopping(
    world: TinyWorld, tmp_path: Path, processes: int | None
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ["--batch_size", "8", "--proj_dropout", "0.2", "--flip_prob", "0.5"]
    succeed("main_lpd.py", *world.train_flags(whole), *common, "--epochs", "3", processes=processes)
    for epochs in ("2", "3"):
        succeed(
            *("main_lpd.py", *world.train_flags(parts), *common),
            *("--epochs", epochs, "--resume", parts),
            processes=processes,
        )
    for name, value in weights(whole).items():
        assert torch.equal(weights(parts)[name], value), name
    assert logged(parts, "train/loss") == logged(whole, "train/loss")


def test_checkpoint_holds_what_the_published_form_holds(world: TinyWorld, tmp_path: Path) -> None:
    succeed("main_lpd.py", *world.train_flags(tmp_path), "--epochs", "1", "--batch_size", "16")
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [
        "checkpoint-0.pth",
        "checkpoint-last.pth",
    ]
    content = read_checkpoint(tmp_path / "checkpoint-0.pth", "test")
    assert {"model", "optimizer", "epoch", "args"} <= set(content)
    assert content["epoch"] == 0
    assert content["args"]["model"] == "lpd_tiny"
    assert opens_anywhere(*tmp_path.glob("*.pth"))
    # Betas, and decay on everything but biases and one-dimensional parameters.
    groups = content["optimizer"]["param_groups"]
    assert all(tuple(group["betas"]) == (0.9, 0.95) for group in groups)
    assert all(group["eps"] == 1e-8 for group in groups)
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.02]
    ndims = {name: value.ndim for name, value in content["model"].items()}
    decayed = next(group for group in groups if group["weight_decay"] > 0)["params"]
    assert len(decayed) == sum(ndim >= 2 for ndim in ndims.values())


def test_training_on_a_finer_grid_from_resized_positions(world: TinyWorld, tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, size=32)
    flags = [*world.model_flags(), "--img_size", "32", "--data_path", images]
    succeed(
        *("main_lpd.py", *flags, "--pretrained_ckpt", world.checkpoint, "--epochs", "1"),
        *("--batch_size", "2", "--lr", "0", "--generation_steps", "6", "--num_workers", "1"),
        *("--weight_decay", "0", "--output_dir", tmp_path / "out", "--log_dir", tmp_path / "out"),
    )
    before = read_checkpoint(world.checkpoint, "test")["model"]
    after = weights(tmp_path / "out")
    assert after["pos_embed"].shape == (1, 65, 192)
    assert torch.equal(after["pos_embed"], resize_pos_embed(before["pos_embed"], 64))
    assert torch.equal(after["head.weight"], before["head.weight"])


def test_images_encoded_on_the_fly_equal_cached_tokens(world: TinyWorld, tmp_path: Path) -> None:
    images, cache = tmp_path / "images", tmp_path / "cache"
    write_images(images, size=16)
    succeed(
        *("main_cache.py", "--data_path", images, "--cached_path", cache, "--img_size", "16"),
        *("--vqgan_path", world.tokenizer, "--device", "cpu", "--num_workers", "0"),
    )
    flags = ["--epochs", "2", "--batch_size", "2", "--flip_prob", "0.5"]
    cached, fly = tmp_path / "cached", tmp_path / "fly"
    succeed("main_lpd.py", *world.train_flags(cached), "--cached_path", cache, *flags)
    fly_flags = [flag for flag in world.train_flags(fly) if flag != "--use_cached"]
    succeed("main_lpd.py", *fly_flags, "--data_path", images, "--num_workers", "2", *flags)
    assert logged(fly, "train/loss") == pytest.approx(logged(cached, "train/loss"), rel=1e-6)


@pytest.mark.parametrize("cached", [True, False])
def test_bad_data_of_one_process_ends_all_in_one_line(
    world: TinyWorld, tmp_path: Path, cached: bool
) -> None:
    """In the middle of a run, while the other process waits for its gradients."""
    flags = [*world.train_flags(tmp_path / "out"), "--batch_size", "4", "--save_steps", "1"]
    if cached:
        for number, label in enumerate(open_cache(world.cache).labels):
            file = tmp_path / "data" / f"class{label}" / f"{number:02d}.npz"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, indices=np.arange(16), indices_flip=np.arange(16))
        named = "--cached_path: "
        flags += ["--cached_path", str(tmp_path / "data")]
    else:
        for folder in range(4):
            write_images(tmp_path / "data" / str(folder), size=16)
        flags = [flag for flag in flags if flag != "--use_cached"]
        flags += ["--data_path", str(tmp_path / "data"), "--class_num", "4", "--num_workers", "0"]
        named = ""
    flags += ["--class_num", "4"]
    files = sorted(path for path in (tmp_path / "data").rglob("*") if path.is_file())
    # Seen by the second process, in the last step of the first epoch.
    (*_, last) = epoch_samples(len(files), 0, 8, seed=1)
    seen = last.reshape(2, 4)[1, 2]
    files[seen].write_bytes(files[seen].read_bytes()[:40])
    result = run_command("main_lpd.py", *flags, processes=2)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith(f"error: {named}{files[seen]}"), result.stderr
    assert 'main_lpd.py", line' not in result.stderr
    assert len(re.findall(r"exitcode\s*: 2 ", result.stderr)) == 2, result.stderr
    # No step with anything else in the place of that image was saved.
    for path in (tmp_path / "out").glob("*.pth"):
        assert read_checkpoint(path, "test")["epoch"] == -1


def write_images(folder: Path, size: int) -> None:
    """Two random images for each of three classes."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for label in range(3):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(2):
            pixels = torch.randint(256, (size, size, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(folder / f"class{label}" / f"{number}.png")


def test_online_evaluation_shows_the_samples_of_a_fixed_seed(
    world: TinyWorld, tmp_path: Path
) -> None:
    flags = ["--epochs", "2", "--online_eval", "--eval_freq", "1", "--num_images", "6"]
    flags += ["--generation_steps", "4", "--feature_extractor", "none"]
    one, two = tmp_path / "one", tmp_path / "two"
    main_lpd.main([*world.train_flags(one), *flags])
    main_lpd.main([*world.train_flags(two), *flags, "--lr", "1e-30"])
    shown = {}
    for folder in (one, two):
        events = EventAccumulator(str(folder))
        events.Reload()
        shown[folder] = events.Images("eval/samples")
        assert [event.step for event in shown[folder]] == [2, 5]
        assert (shown[folder][0].height, shown[folder][0].width) == (2 * 16 + 2, 3 * 16 + 2 * 2)
    first, second = shown[two]
    assert first.encoded_image_string == second.encoded_image_string  # nothing was learned
    assert shown[one][1].encoded_image_string != second.encoded_image_string


def test_wandb_gets_what_tensorboard_gets(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the client, told to mirror TensorBoard."""
    told = []
    client = SimpleNamespace(
        init=lambda **options: told.append(options), finish=lambda: told.append("finished")
    )
    monkeypatch.setitem(sys.modules, "wandb", client)
    flags = ["--epochs", "1", "--use_wandb", "--wandb_project", "p", "--wandb_run_name", "n"]
    main_lpd.main([*world.train_flags(tmp_path), *flags])
    options, end = told
    assert (options["project"], options["name"], end) == ("p", "n", "finished")
    assert options["sync_tensorboard"] is True
    assert options["config"]["epochs"] == 1


def test_wandb_that_is_not_installed_is_one_line(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--use_wandb: the wandb package is not installed"):
        main_lpd.main([*world.train_flags(tmp_path), "--use_wandb"])
