"""Bad input of `main_lpd.py`: one line that names the flag or file, and nothing half-written."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import main_lpd
from orders.order_file import write_orders
from tests.commands import run_command
from tests.integration.tiny_world import GRID, TinyWorld, tiny_tokenizer
from tokenizers.vq_model import save_tokenizer
from util.checkpoint_io import atomic_save
from util.errors import UserError


class Canary:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mknod, (str(self.path),)


def file(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def orders(folder: Path, rows: list[list[int]]) -> Path:
    return file(folder, "orders.json", json.dumps(rows))


def repeated(folder: Path) -> Path:
    rows = [list(range(16)) for _ in range(9)]
    rows[4][0] = 7
    return orders(folder, rows)


def other_grid(folder: Path) -> Path:
    write_orders(folder / "orders.npy", np.tile(np.arange(64), (9, 1)))
    return folder / "orders.npy"


def other_tokenizer(folder: Path) -> Path:
    save_tokenizer(folder / "other.pt", tiny_tokenizer(seed=5))
    return folder / "other.pt"


def checkpoint(folder: Path, content: object) -> Path:
    atomic_save(content, folder / "x.pth")
    return folder / "x.pth"


def truncated(world: TinyWorld, folder: Path) -> Path:
    return file(folder, "cut.pth", world.checkpoint.read_bytes()[:5000])


def malicious(folder: Path) -> Path:
    torch.save({"model": Canary(folder / "canary")}, folder / "evil.pth")
    return folder / "evil.pth"


def missing_cache(folder: Path) -> Path:
    return folder / "nowhere"


Case = tuple[Callable[[TinyWorld, Path], list[object]], str]
LPD = ["--order", "lpd", "--lpd_order_file"]

EVALUATION: dict[str, Case] = {
    "missing checkpoint": (
        lambda w, t: ["--pretrained_ckpt", t / "no.pth"],
        r"--pretrained_ckpt: .*no.pth does not exist, expected a checkpoint",
    ),
    "truncated checkpoint": (
        lambda w, t: ["--pretrained_ckpt", truncated(w, t)],
        r"--pretrained_ckpt: .*cut.pth is not a readable checkpoint",
    ),
    "empty checkpoint": (
        lambda w, t: ["--pretrained_ckpt", file(t, "empty.pth", b"")],
        r"--pretrained_ckpt: .*empty.pth is not a readable checkpoint",
    ),
    "malicious checkpoint": (
        lambda w, t: ["--pretrained_ckpt", malicious(t)],
        r"--pretrained_ckpt: .*evil.pth is not a readable checkpoint",
    ),
    "checkpoint without weights": (
        lambda w, t: ["--pretrained_ckpt", checkpoint(t, {"optimizer": {}})],
        r"--pretrained_ckpt: .*x.pth: holds no 'model' entry",
    ),
    "checkpoint of another size": (
        lambda w, t: ["--model", "lpd_l"],
        r"--pretrained_ckpt: .*lpd.pth: weight fake_latent has shape \(1, 192\), expected \(1, 10",
    ),
    "checkpoint of another grid": (
        lambda w, t: ["--img_size", 32],
        r"--pretrained_ckpt: .*pos_embed has shape \(1, 17, 192\), expected \(1, 65, 192\)",
    ),
    "nothing to evaluate": (
        lambda w, t: ["--resume", t],
        r"--resume: .*checkpoint-last.pth does not exist, expected a checkpoint",
    ),
    "sizes that do not sum": (
        lambda w, t: no_steps(["--group_sizes", "[1, 2, 3]"]),
        r"--group_sizes: .*6.*16",
    ),
    "size of zero": (
        lambda w, t: no_steps(["--group_sizes", "[0, 16]"]),
        r"--group_sizes: .*0",
    ),
    "negative size": (
        lambda w, t: no_steps(["--group_sizes", "[-1, 17]"]),
        r"--group_sizes: .*-1",
    ),
    "code as sizes": (
        lambda w, t: no_steps(["--group_sizes", f"__import__('os').mknod('{t / 'canary'}')"]),
        r"--group_sizes: .*expected",
    ),
    "steps without a split": (
        lambda w, t: ["--generation_steps", 17],
        r"--generation_steps: .*17",
    ),
    "one step for many tokens": (
        lambda w, t: ["--generation_steps", 1],
        r"--generation_steps: .*1",
    ),
    "order file with a repeated position": (
        lambda w, t: [*LPD, repeated(t)],
        r"--lpd_order_file: .*(row|order) 4.*7",
    ),
    "order file of another grid": (
        lambda w, t: [*LPD, other_grid(t)],
        r"--lpd_order_file: .*64.*16",
    ),
    "too few orders": (
        lambda w, t: [*LPD, orders(t, [list(range(16))] * 8)],
        r"--lpd_order_file: .* holds 8 orders, expected at least 9",
    ),
    "order file that is no JSON": (
        lambda w, t: [*LPD, file(t, "orders.json", "[[1, 2")],
        r"--lpd_order_file: .*JSON",
    ),
    "order file with random order": (
        lambda w, t: ["--lpd_order_file", orders(t, [list(range(16))] * 9)],
        r"--lpd_order_file: found .* with --order random, expected --order lpd",
    ),
    "unknown model": (
        lambda w, t: ["--model", "lpd_s"],
        r"--model: invalid choice: 'lpd_s' \(choose from ",
    ),
    "unknown order": (
        lambda w, t: ["--order", "raster"],
        r"--order: invalid choice: 'raster'",
    ),
    "unknown guidance schedule": (
        lambda w, t: ["--cfg_schedule", "cosine"],
        r"--cfg_schedule: invalid choice: 'cosine'",
    ),
    "unknown extractor": (
        lambda w, t: ["--feature_extractor", "clip"],
        r"--feature_extractor: found 'clip', expected inception, digits or none",
    ),
    "missing extractor weights": (
        lambda w, t: ["--feature_extractor", "digits", "--feature_extractor_weights", t / "no"],
        r"--feature_extractor_weights: .*no does not exist",
    ),
    "images not divisible by classes": (
        lambda w, t: ["--num_images", 10],
        r"--num_images: found 10, expected a multiple of the 3 classes",
    ),
    "unwritable output": (
        lambda w, t: ["--output_dir", file(t, "file", "") / "out"],
        r"--output_dir: .*expected a folder that can be written to",
    ),
    "missing tokenizer": (
        lambda w, t: ["--vqgan_path", t / "no.pt"],
        r"--vqgan_path: .*no.pt does not exist",
    ),
    "stride of another tokenizer": (
        lambda w, t: ["--vqgan_stride", 16],
        r"--vqgan_stride: found 16, expected 4",
    ),
    "vocabulary of another tokenizer": (
        lambda w, t: ["--vqgan_vocab_size", 16384],
        r"--vqgan_path: .* has 32 codes, expected 16384 \(--vqgan_vocab_size\)",
    ),
    "image size off the stride": (
        lambda w, t: ["--img_size", 18],
        r"--img_size: image size 18 is not a multiple of the tokenizer's stride 4",
    ),
    "negative temperature": (
        lambda w, t: ["--temperature", "-1"],
        r"--temperature: found '-1', expected a finite number of at least 0",
    ),
    "device that does not exist": (
        lambda w, t: ["--device", "tpu"],
        r"--device: found 'tpu', expected cpu or cuda",
    ),
}

TRAINING: dict[str, Case] = {
    "missing cache": (
        lambda w, t: ["--cached_path", missing_cache(t)],
        r"--cached_path: .*nowhere does not exist",
    ),
    "no cache given": (lambda w, t: ["--cached_path", ""], r"--cached_path: not given"),
    "cache of another tokenizer": (
        lambda w, t: ["--vqgan_path", other_tokenizer(t)],
        r"--cached_path: .* was made by the tokenizer [0-9a-f]{12}, expected [0-9a-f]{12}",
    ),
    "cache of another image size": (
        lambda w, t: ["--img_size", 32],
        r"--cached_path: .* was made for image size 16, expected 32",
    ),
    "cache of more classes": (
        lambda w, t: ["--class_num", 2],
        r"--cached_path: .* has 3 classes, expected at most the 2 of --class_num",
    ),
    "batch larger than the data": (
        lambda w, t: ["--batch_size", 64],
        r"--batch_size: found 64 on 1 processes, expected at most 48",
    ),
    "sizes list of another grid": (
        lambda w, t: ["--group_sizes_list", file(t, "sizes.json", "[[1, 2], [3]]")],
        r"--group_sizes_list: .*16",
    ),
    "missing sizes list": (
        lambda w, t: ["--group_sizes_list", t / "no.json"],
        r"--group_sizes_list: .*no.json",
    ),
    "unknown schedule": (
        lambda w, t: ["--lr_schedule", "linear"],
        r"--lr_schedule: invalid choice: 'linear'",
    ),
    "damaged resume": (
        lambda w, t: ["--resume", file(t, "checkpoint-last.pth", b"PK\x03\x04 no").parent],
        r"--resume: .*checkpoint-last.pth is not a readable checkpoint",
    ),
    "resume of another model": (
        lambda w, t: ["--resume", resumable(t)],
        r"--resume: .*weight fake_latent has shape \(1, 8\), expected \(1, 192\)",
    ),
}


def no_steps(flags: list[object]) -> list[object]:
    """Marks cases that give --group_sizes, which --generation_steps would replace."""
    return ["no steps", *flags]


def resumable(folder: Path) -> Path:
    content = {"model": {"fake_latent": torch.zeros(1, 8)}, "optimizer": {}, "epoch": 0}
    atomic_save({**content, "args": argparse.Namespace()}, folder / "checkpoint-last.pth")
    return folder


def complaint(arguments: list[object]) -> str:
    with pytest.raises(UserError) as caught:
        main_lpd.main(list(map(str, arguments)))
    return str(caught.value)


@pytest.mark.parametrize("case", EVALUATION)
def test_bad_evaluation(world: TinyWorld, tmp_path: Path, case: str) -> None:
    make, pattern = EVALUATION[case]
    output = tmp_path / "out"
    flags, extra = world.eval_flags(output), make(world, tmp_path)
    if extra[0] == "no steps":
        at = flags.index("--generation_steps")
        flags, extra = flags[:at] + flags[at + 2 :], extra[1:]
    if extra[0] == "--resume":
        at = flags.index("--pretrained_ckpt")
        flags = flags[:at] + flags[at + 2 :]
    message = complaint([*flags, *extra])
    assert re.match(pattern, message), message
    assert "\n" not in message
    assert not (tmp_path / "canary").exists()
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("case", TRAINING)
def test_bad_training(world: TinyWorld, tmp_path: Path, case: str) -> None:
    make, pattern = TRAINING[case]
    output = tmp_path / "out"
    message = complaint([*world.train_flags(output), *make(world, tmp_path)])
    assert re.match(pattern, message), message
    assert "\n" not in message
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_where_there_is_none(world: TinyWorld, tmp_path: Path) -> None:
    message = complaint([*world.eval_flags(tmp_path), "--device", "cuda"])
    assert message == "--device: found 'cuda' but no usable GPU, expected --device cpu here"


def test_empty_class_folder(world: TinyWorld, tmp_path: Path) -> None:
    (tmp_path / "data" / "cats").mkdir(parents=True)
    flags = [flag for flag in world.train_flags(tmp_path) if flag != "--use_cached"]
    message = complaint([*flags, "--data_path", tmp_path / "data"])
    assert re.match(r"--data_path: class folder .*cats holds no images", message)


@pytest.mark.parametrize("processes", [None, 2])
def test_the_command_ends_in_one_line(
    world: TinyWorld, tmp_path: Path, processes: int | None
) -> None:
    flags = [*world.eval_flags(tmp_path / "out"), "--num_images", "10"]
    result = run_command("main_lpd.py", *flags, processes=processes)
    line = "error: --num_images: found 10, expected a multiple of the 3 classes (--class_num)\n"
    assert result.stderr.count(line) == 1
    if processes is None:
        assert result.returncode == 2
        assert result.stderr == line
    else:
        assert result.returncode == 1
        assert result.stderr.count("exitcode  : 2") + result.stderr.count("exitcode: 2") >= 1
        # Only torchrun's own report may hold a traceback; no worker wrote one.
        assert 'main_lpd.py", line' not in result.stderr


def test_grid_of_the_world_is_what_the_cases_assume() -> None:
    assert GRID.num_tokens == 16
