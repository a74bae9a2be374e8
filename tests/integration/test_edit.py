"""Editing through its command: odd inputs work, and what is kept is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.edit_canvas import fit
from evaluation.networks import load_networks
from models.editing import edit as library_edit
from scripts import edit as command
from tests.commands import results_in, succeed
from tests.integration.tiny_world import TinyWorld
from util import logs
from util.images import to_float, to_uint8


def picture(width: int = 16, height: int = 16) -> Image.Image:
    draws = np.random.default_rng(3)
    return Image.fromarray(draws.integers(256, size=(height, width, 3), dtype=np.uint8))


@pytest.fixture
def edit(world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command in this process: the variants (V, h, w, 3) it leaves."""
    monkeypatch.setattr(logs, "setup", lambda: None)

    def run(image: Image.Image | Path, *flags: object) -> np.ndarray:
        path = image if isinstance(image, Path) else tmp_path / "image.png"
        if not isinstance(image, Path):
            image.save(path)
        out = tmp_path / "out"
        files = ["--pretrained_ckpt", world.checkpoint, "--vqgan_path", world.tokenizer]
        given = [*files, "--image", path, "--device", "cpu", "--variants", 3, "--output_dir", out]
        command.main(list(map(str, [*given, *flags])))
        names = [path.name for path in results_in(out)]
        assert names == ["00000.png", "00001.png", "00002.png", "grid.png"]
        return np.stack([np.asarray(Image.open(out / name)) for name in names[:-1]])

    return run


def reconstruction(world: TinyWorld, image: Image.Image) -> np.ndarray:
    _, tokenizer = load_networks(world.checkpoint, world.tokenizer)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return to_uint8(tokenizer.decode_code(tokenizer.encode_indices(to_float(pixels)))).numpy()[0]


def test_a_black_mask_gives_the_reconstruction(world: TinyWorld, tmp_path: Path, edit) -> None:
    Image.new("L", (16, 16)).save(tmp_path / "mask.png")
    made = edit(picture(), "--mask", tmp_path / "mask.png")
    difference = made.astype(int) - reconstruction(world, picture())
    assert abs(difference).max() <= 1  # the fast decoder may round another way
    composed = edit(picture(), "--mask", tmp_path / "mask.png", "--composite")
    np.testing.assert_array_equal(composed, [np.asarray(picture())] * 3)


def test_composite_keeps_the_original_outside_the_feather(edit) -> None:
    made = edit(picture(), *"--box 4 4 9 9 --class 1 --cfg 2 --composite --feather 2".split())
    original = np.asarray(picture())
    kept = np.ones((16, 16), dtype=bool)
    kept[2:11, 2:11] = False
    for variant in made:
        np.testing.assert_array_equal(variant[kept], original[kept])
        assert (variant[4:9, 4:9] != original[4:9, 4:9]).any()
    assert len(np.unique(made, axis=0)) == 3


def test_variants_depend_on_seed_and_number_only(edit) -> None:
    flags = "--box 0 8 16 16 --class 2".split()
    first = edit(picture(), *flags)
    np.testing.assert_array_equal(edit(picture(), *flags), first)
    np.testing.assert_array_equal(edit(picture(), *flags, "--sampler", "plain"), first)
    assert (edit(picture(), *flags, "--seed", "1") != first).any()


def test_every_flag_reaches_the_library(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = {"cfg": 3.0, "cfg_schedule": "constant", "temperature": 0.7, "top_k": 9}
    sampling |= {"top_p": 0.8, "sampler": "plain"}
    orders = {"num_steps": 3, "proximity_threshold": 0.5, "repulsion_threshold": 2.0, "seed": 5}
    flags = {
        name.replace("num_steps", "steps"): value for name, value in (sampling | orders).items()
    }
    given = [word for name, value in flags.items() for word in (f"--{name}", value)]
    picture().save(tmp_path / "image.png")
    files = ["--pretrained_ckpt", world.checkpoint, "--vqgan_path", world.tokenizer]
    files += ["--image", tmp_path / "image.png", "--output_dir", tmp_path / "out"]
    what = ["--box", 0, 4, 16, 16, "--class", 2, "--variants", 35, "--device", "cpu"]
    monkeypatch.setattr(logs, "setup", lambda: None)
    command.main(list(map(str, [*files, *what, *given])))

    model, tokenizer = load_networks(world.checkpoint, world.tokenizer)
    pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None]
    tokens = tokenizer.encode_indices(to_float(pixels)).expand(35, -1)
    mask = (torch.arange(16) >= 4).expand(35, -1)
    edited = library_edit(model, tokens, mask, torch.full((35,), 2), **sampling, **orders)
    expected = to_uint8(tokenizer.decode_code(edited)).numpy()
    for place, image in enumerate(expected):
        found = np.asarray(Image.open(tmp_path / "out" / f"{place:05d}.png"))
        np.testing.assert_array_equal(found, image)
    assert len(np.unique(expected, axis=0)) > 30


def test_the_grid_shows_original_mask_and_variants(tmp_path: Path, edit) -> None:
    made = edit(picture(), *"--box 0 8 16 16 --class 2".split())
    grid = np.asarray(Image.open(tmp_path / "out" / "grid.png"))
    assert grid.shape == (34, 52, 3)
    np.testing.assert_array_equal(grid[:16, :16], np.asarray(picture()))
    np.testing.assert_array_equal(grid[:16, 36:], made[0])
    np.testing.assert_array_equal(grid[18:, 18:34], made[2])
    np.testing.assert_array_equal(grid[:8, 18:34], np.asarray(picture())[:8])
    red = grid[8:16, 18:34].mean(axis=(0, 1))
    assert red[0] > 200 and red[1] < 110


@pytest.mark.parametrize(("width", "height"), [(64, 20), (5, 9), (1000, 700)])
def test_a_padded_image_keeps_its_proportions(edit, width: int, height: int) -> None:
    image = picture(width, height)
    flags = ["--fit", "pad", "--box", 0, 0, width // 2, height]
    made = edit(image, *flags)
    canvas = fit(image, np.zeros((height, width), dtype=bool), 16, "pad")
    assert made.shape[1:] == canvas.picture(canvas.pixels).shape
    assert abs(made.shape[2] / made.shape[1] - width / height) < 0.5


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_outpainting_keeps_what_was_there(side: str, edit) -> None:
    flags = ["--outpaint", side, 8, "--class", 0, "--composite", "--feather", 0]
    turns = {"left": 0, "top": 1, "right": 2, "bottom": 3}[side]
    made = np.rot90(edit(picture(), *flags), turns, axes=(1, 2))
    original = np.rot90(np.asarray(picture()), turns)
    for variant in made:
        np.testing.assert_array_equal(variant[:, 8:], original[:, :8])
    padded = edit(picture(), *flags[:3], "--fit", "pad")
    assert sorted(padded.shape[1:3]) == [11, 16]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16", "GIF", "exif"])
def test_images_of_any_mode(tmp_path: Path, edit, mode: str) -> None:
    path = tmp_path / {"CMYK": "a.jpg", "GIF": "a.gif"}.get(mode, "a.png")
    image = picture(20, 24)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode not in ("GIF", "exif"):
        image = image.convert(mode)
    options = {}
    if mode == "exif":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 8
    image.save(path, **options)
    # Of the image as it is shown: turned, the box would leave it.
    box = (20, 0, 24, 20) if mode == "exif" else (0, 20, 20, 24)
    assert edit(path, "--fit", "pad", "--box", *box).shape[0] == 3


def test_a_mask_of_another_size_and_many_steps_will_do(tmp_path: Path, edit) -> None:
    mask = Image.new("L", (160, 160))
    mask.paste(255, (0, 0, 80, 160))
    mask.save(tmp_path / "mask.png")
    half = edit(picture(), "--mask", tmp_path / "mask.png", "--steps", 99)
    np.testing.assert_array_equal(edit(picture(), "--box", 0, 0, 8, 16, "--steps", 8), half)


@pytest.mark.slow
def test_the_command_leaves_its_record_and_log(world: TinyWorld, tmp_path: Path) -> None:
    picture().save(tmp_path / "image.png")
    (tmp_path / "names.txt").write_text("cat\ndog\neel\n")
    files = ["--pretrained_ckpt", world.checkpoint, "--vqgan_path", world.tokenizer]
    flags = ["--image", tmp_path / "image.png", "--box", 0, 0, 8, 8, "--class", "dog", "--bf16"]
    names = ["--class_names", tmp_path / "names.txt"]
    out = ["--device", "cpu", "--output_dir", tmp_path / "out"]
    succeed("scripts/edit.py", *files, *flags, *names, *out)
    assert "--box 0 0 8 8" in (tmp_path / "out" / "commands.sh").read_text()
    assert "4 of 16 tokens in 2 steps" in (tmp_path / "out" / "log.txt").read_text()
    assert len(results_in(tmp_path / "out")) == 5
