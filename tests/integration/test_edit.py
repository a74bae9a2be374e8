"""Editing through its command: odd inputs work, and what is kept is kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
    """Runs the command in this process: the variants (V, h, w, 3) it leaves of `picture()`."""
    monkeypatch.setattr(logs, "setup", lambda: None)
    picture().save(tmp_path / "image.png")

    def run(*flags: object, variants: int = 3) -> np.ndarray:
        out = tmp_path / "out"
        given = ["--pretrained_ckpt", world.checkpoint, "--vqgan_path", world.tokenizer]
        given += ["--image", tmp_path / "image.png", "--device", "cpu", "--variants", variants]
        command.main(list(map(str, [*given, "--output_dir", out, *flags])))
        names = [path.name for path in results_in(out)]
        assert names == [*(f"{place:05d}.png" for place in range(variants)), "grid.png"]
        return np.stack([np.asarray(Image.open(out / name)) for name in names[:-1]])

    return run


def decoded_edit(world: TinyWorld, mask: torch.Tensor, *labels: int, **options) -> np.ndarray:
    """What the library makes of `picture()`, one image for each class."""
    model, tokenizer = load_networks(world.checkpoint, world.tokenizer)
    pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None]
    tokens = tokenizer.encode_indices(to_float(pixels)).expand(len(labels), -1)
    edited = library_edit(model, tokens, mask.expand(len(labels), -1), list(labels), **options)
    return to_uint8(tokenizer.decode_code(edited)).numpy()


def test_a_black_mask_gives_the_reconstruction(world: TinyWorld, tmp_path: Path, edit) -> None:
    Image.new("L", (16, 16)).save(tmp_path / "mask.png")
    made = edit("--mask", tmp_path / "mask.png")
    reconstruction = decoded_edit(world, torch.zeros(16, dtype=torch.bool), 0)
    assert abs(made.astype(int) - reconstruction).max() <= 1  # the fast decoder may round
    composed = edit("--mask", tmp_path / "mask.png", "--composite")
    np.testing.assert_array_equal(composed, [np.asarray(picture())] * 3)


def test_every_flag_reaches_the_library(world: TinyWorld, edit) -> None:
    options = {"cfg": 20.0, "cfg_schedule": "constant", "temperature": 0.7, "top_k": 9}
    options |= {"top_p": 0.8, "sampler": "plain", "num_steps": 4, "proximity_threshold": 2.0}
    options |= {"repulsion_threshold": 2.0, "seed": 5}
    flags = {name.replace("num_steps", "steps"): value for name, value in options.items()}
    given = [word for name, value in flags.items() for word in (f"--{name}", value)]
    made = edit("--box", 0, 4, 16, 16, "--class", 2, *given, variants=35)
    mask = torch.arange(16) >= 4
    expected = decoded_edit(world, mask, *[2] * 35, **options)
    np.testing.assert_array_equal(made, expected)
    assert len(np.unique(expected, axis=0)) > 20
    defaults = {"cfg": 1.0, "cfg_schedule": "linear", "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    defaults |= {"num_steps": None, "proximity_threshold": 1.0, "repulsion_threshold": None}
    for name, value in {**defaults, "seed": 0}.items():
        other = decoded_edit(world, mask, *[2] * 35, **{**options, name: value})
        assert (other != expected).any(), name


def test_the_grid_shows_original_mask_and_variants(tmp_path: Path, edit) -> None:
    flags = "--box 0 8 16 16 --class 2".split()
    made = edit(*flags)
    assert len(np.unique(made, axis=0)) == 3
    grid = np.asarray(Image.open(tmp_path / "out" / "grid.png"))
    assert grid.shape == (34, 52, 3)
    np.testing.assert_array_equal(grid[:16, :16], np.asarray(picture()))
    np.testing.assert_array_equal(grid[:16, 36:], made[0])
    np.testing.assert_array_equal(grid[18:, 18:34], made[2])
    np.testing.assert_array_equal(grid[:8, 18:34], np.asarray(picture())[:8])
    red = grid[8:16, 18:34].mean(axis=(0, 1))
    assert red[0] > 200 and red[1] < 110
    # Variants depend on the seed and their number only.
    np.testing.assert_array_equal(edit(*flags, "--sampler", "plain"), made)


@pytest.mark.parametrize(("side", "turns"), [("left", 0), ("bottom", 3)])
def test_outpainting_keeps_what_was_there(side: str, turns: int, edit) -> None:
    flags = ["--outpaint", side, 8, "--class", 0, "--composite", "--feather", 0]
    made = np.rot90(edit(*flags), turns, axes=(1, 2))
    original = np.rot90(np.asarray(picture()), turns)
    np.testing.assert_array_equal(made[:, :, 8:], [original[:, :8]] * 3)
    assert sorted(edit(*flags[:3], "--fit", "pad").shape[1:3]) == [11, 16]


def test_a_turned_image_is_padded_as_it_is_shown(tmp_path: Path, edit) -> None:
    turned = Image.Exif()
    turned[0x0112] = 8
    picture(20, 64).save(tmp_path / "turned.png", exif=turned)
    # Not turned, the box would leave it.
    made = edit("--image", tmp_path / "turned.png", *"--fit pad --box 60 0 64 20".split())
    assert made.shape == (3, 5, 16, 3)


def test_a_mask_of_another_size_and_many_steps_will_do(tmp_path: Path, edit) -> None:
    mask = Image.new("L", (160, 160))
    mask.paste(255, (0, 0, 80, 160))
    mask.save(tmp_path / "mask.png")
    half = edit("--mask", tmp_path / "mask.png", "--steps", 99)
    np.testing.assert_array_equal(edit(*"--box 0 0 8 16 --steps 8".split()), half)


@pytest.mark.slow
def test_the_command_leaves_its_record_and_log(world: TinyWorld, tmp_path: Path) -> None:
    picture().save(tmp_path / "image.png")
    (tmp_path / "names.txt").write_text("cat\ndog\neel\n")
    flags = ["--pretrained_ckpt", world.checkpoint, "--vqgan_path", world.tokenizer]
    flags += ["--image", tmp_path / "image.png", "--box", 0, 0, 8, 8, "--class", "dog", "--bf16"]
    flags += ["--class_names", tmp_path / "names.txt", "--device", "cpu"]
    succeed("scripts/edit.py", *flags, "--output_dir", tmp_path / "out")
    assert "--box 0 0 8 8" in (tmp_path / "out" / "commands.sh").read_text()
    assert "4 of 16 tokens in 2 steps" in (tmp_path / "out" / "log.txt").read_text()
    assert len(results_in(tmp_path / "out")) == 5
