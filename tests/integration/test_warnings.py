"""What works but is hardly meant is said once, with what comes of it; the usual is not."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import main_lpd
import scripts.app
from hub.weights import atomic_save
from models.lpd import lpd_tiny
from orders.locality import random_orders
from orders.order_file import write_orders
from scripts import edit, evaluate_orders, search_cfg, visualize
from tests.integration.tiny_world import GRID, TinyWorld, write_images
from util import logs


class Done(BaseException):
    """The work would begin here."""


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Starts a command up to its work: the warnings that it has logged."""
    monkeypatch.setattr(logs, "setup", lambda: None)

    def begin(*arguments: object, **options: object) -> None:
        raise Done

    for module, name in (
        *((main_lpd, "train"), (main_lpd, "evaluate_checkpoint"), (search_cfg, "shown_results")),
        *((evaluate_orders, "describe"), (evaluate_orders, "measure"), (edit, "encode")),
        *((visualize, "generate"), (visualize, "draw_orders"), (scripts.app, "listen")),
    ):
        monkeypatch.setattr(module, name, begin)

    def run(command: Callable[[list[str]], None], *flags: object) -> list[str]:
        caplog.clear()
        with pytest.raises(Done):
            command(list(map(str, flags)))
        return [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]

    return run


def one(found: list[str], start: str, end: str) -> bool:
    """Whether there is one warning, of such a start and end."""
    (message,) = found
    assert message.startswith(start) and message.endswith(end), message
    return True


def test_data_of_fewer_classes(world: TinyWorld, tmp_path: Path, warnings) -> None:
    usual = [*world.train_flags(tmp_path / "out"), "--epochs", 2]
    assert warnings(main_lpd.main, *usual) == []
    more = ["--class_num", 1000]
    words = "holds 3 classes and the model has 1000: the others learn nothing, and an evaluation "
    words += "makes images of them, too; expected --class_num 3"
    cache = f"--cached_path: {world.cache} "
    assert one(warnings(main_lpd.main, *usual, *more), cache, words)
    # Whoever trains weights of 1,000 classes further, on three of them, means it.
    model = lpd_tiny(img_size=16, vqgan_stride=4, vqgan_vocab_size=32, class_num=1000)
    atomic_save({"model": model.state_dict()}, tmp_path / "1000.pth")
    assert warnings(main_lpd.main, *usual, *more, "--pretrained_ckpt", tmp_path / "1000.pth") == []
    write_images(tmp_path / "images")
    usual.remove("--use_cached")
    usual += ["--data_path", tmp_path / "images", "--batch_size", 2]
    assert warnings(main_lpd.main, *usual) == []
    folder = f"--data_path: {tmp_path / 'images'} "
    assert one(warnings(main_lpd.main, *usual, *more), folder, words)


def test_a_run_that_ends_too_early(world: TinyWorld, tmp_path: Path, warnings) -> None:
    def found(*flags: object) -> list[str]:
        return warnings(main_lpd.main, *world.train_flags(tmp_path), "--epochs", 30, *flags)

    both = ["--lr_schedule", "constant+cosine", "--warmup_epochs"]
    start = "--warmup_epochs: found 30 with --epochs 30: the learning rate rises "
    for flags in (["--warmup_epochs"], both):
        assert one(found(*flags, 30), start, "expected fewer, or more --epochs")
    assert found("--warmup_epochs", 29) == []
    start = "--lr_decay_start_epoch: found 400 with --epochs 30: the learning rate never falls"
    assert one(found(*both, 29), start, "another --lr_schedule")
    assert found(*both, 29, "--lr_decay_start_epoch", 29) == []
    assert found("--warmup_epochs", 29, "--lr_schedule", "cosine") == []


SPOILED = "or a model trained with --label_drop_prob 0.1"


def test_guidance_in_training_and_in_an_evaluation(
    world: TinyWorld, tmp_path: Path, warnings
) -> None:
    def train(*flags: object) -> list[str]:
        usual = [*world.train_flags(tmp_path), "--epochs", 2, "--num_images", 9]
        usual += ["--generation_steps", 5, "--feature_extractor", "none"]
        return warnings(main_lpd.main, *usual, *flags)

    def evaluate(share: float | None, *flags: object) -> list[str]:
        said = {} if share is None else {"args": {"label_drop_prob": share}}
        atomic_save({**torch.load(world.checkpoint), **said}, tmp_path / "lpd.pth")
        usual = [*world.eval_flags(tmp_path / "out"), "--pretrained_ckpt", tmp_path / "lpd.pth"]
        return warnings(main_lpd.main, *usual, *flags)

    never, guided = ["--label_drop_prob", 0], ["--online_eval", "--cfg", 3]
    for found in (train(*never, *guided), evaluate(0.0, "--cfg", 3)):
        assert one(found, "--cfg: found 3, but the model was trained with ", SPOILED)
    assert train(*never, "--online_eval") == train(*never, "--cfg", 3) == train(*guided) == []
    assert evaluate(0.0) == evaluate(0.1, "--cfg", 3) == evaluate(None, "--cfg", 3) == []
    assert evaluate(0.1, "--cfg", 3, "--label_drop_prob", 0) == []  # the file knows better


def test_guidance_in_other_commands(world: TinyWorld, tmp_path: Path, warnings) -> None:
    # Weights of a run that never saw an image without its class.
    flags = {"img_size": GRID.image_size, "label_drop_prob": 0.0}
    classless = tmp_path / "classless.pth"
    atomic_save({**torch.load(world.checkpoint), "args": flags}, classless)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    files = ["--vqgan_path", world.tokenizer, "--device", "cpu"]
    edits = ["--image", tmp_path / "a.png", "--box", 0, 0, 8, 8, "--class", 1]
    edits += ["--output_dir", tmp_path / "edits"]
    samples = ["samples", "--generation_steps", 5, "--output", tmp_path / "samples.png"]
    for command, flags in ((edit.main, edits), (visualize.main, samples)):
        flags = [*flags, *files, "--pretrained_ckpt"]
        found = warnings(command, *flags, classless, "--cfg", 2)
        assert one(found, "--cfg: found 2, but the model was trained with ", SPOILED)
        assert warnings(command, *flags, classless) == []
        assert warnings(command, *flags, world.checkpoint, "--cfg", 2) == []
    search = [*world.eval_flags(tmp_path / "out"), "--pretrained_ckpt", classless, "--cfgs"]
    found = warnings(search_cfg.main, *search, 1, 3)
    assert one(found, "--cfgs: found guidance, but the model was trained with ", SPOILED)
    assert warnings(search_cfg.main, *search, 1) == []
    found = warnings(scripts.app.main, *files, "--pretrained_ckpt", classless)
    assert one(found, "the page offers guidance, but the model was trained with ", SPOILED)
    assert warnings(scripts.app.main, *files, "--pretrained_ckpt", world.checkpoint) == []


def test_orders_of_other_steps(world: TinyWorld, tmp_path: Path, warnings) -> None:
    path, plain = tmp_path / "res16_steps5_repulsion1.npy", tmp_path / "mine.npy"
    for name in (path, plain):
        write_orders(name, random_orders(48, GRID.num_tokens, seed=0))

    def found(steps: int, file: Path) -> list[str]:
        order = ["--order", "lpd", "--lpd_order_file", file, "--generation_steps", steps]
        return warnings(main_lpd.main, *world.eval_flags(tmp_path / "out"), *order)

    start = f"--lpd_order_file: {path} is named for 5 steps and used for 6: "
    end = "expected --generation_steps 5, or a file made for these steps (orders/run_lpd_order.py)"
    assert one(found(6, path), start, end)
    assert found(5, path) == found(6, plain) == []

    study = ["--pretrained_ckpt", world.checkpoint, "--cached_path", world.cache, "--device", "cpu"]
    study += ["--orders", path, "random", "lpd:1:2", "--steps"]
    start = f"--orders: {path} is named for 5 steps and used for 16, 4: "
    found = warnings(evaluate_orders.main, *study, 16, 5, 4)
    assert one(found, start, end.replace("--generation_steps", "--steps"))
    assert warnings(evaluate_orders.main, *study, 5) == []

    shown = ["order", "--lpd_order_file", path, "--vqgan_stride", 4, "--output_dir", tmp_path]
    start = f"--lpd_order_file: {path} is named for 5 steps and used for 6: "
    assert one(warnings(visualize.main, *shown, "--generation_steps", 6), start, end)
    assert warnings(visualize.main, *shown) == []
