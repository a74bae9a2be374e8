"""Every kind of picture through its command."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.networks import load_networks
from models.decoding import generate
from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders
from orders.order_file import write_orders
from scripts import visualize
from tests.commands import succeed
from tests.integration.tiny_world import GRID, TinyWorld
from util import logs
from util.images import to_uint8
from visualization.drawing import Sheet
from visualization.generation import GREY, step_titles
from visualization.orders import step_map

STEPS, SIDE = 5, 64
SIZES = group_sizes(16, STEPS)


@pytest.fixture
def draw(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the command in this process."""
    monkeypatch.setattr(logs, "setup", lambda: None)

    def run(command: str, *flags: object) -> None:
        if command in ("generation", "samples"):
            flags += ("--pretrained_ckpt", world.checkpoint, "--vqgan_path", world.tokenizer)
            flags += ("--generation_steps", STEPS, "--side", SIDE, "--device", "cpu")
        visualize.main([command, *map(str, flags)])

    return run


def generated(world: TinyWorld, labels: list[int], orders: np.ndarray, **sampling) -> np.ndarray:
    """What `generate` gives, decoded and enlarged: (B, SIDE, SIDE, 3) uint8."""
    model, tokenizer = load_networks(world.checkpoint, world.tokenizer)
    with torch.no_grad():
        tokens = generate(model, labels, orders, SIZES, seed=1, **sampling)
        images = to_uint8(tokenizer.decode_code(tokens)).numpy()
    return images.repeat(SIDE // 16, axis=1).repeat(SIDE // 16, axis=2)


def cells(picture: Image.Image, sheet: Sheet, count: int) -> list[np.ndarray]:
    """The images of a sheet."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    corners = [sheet.corner(index, SIDE) for index in range(count)]
    return [pixels[top : top + SIDE, left : left + SIDE] for left, top in corners]


def grey_cells(image: np.ndarray, tolerance: int) -> np.ndarray:
    """Which cells of an image are grey all over: (G, G) bool."""
    grey = np.abs(image - GREY).max(axis=-1) <= tolerance
    return grey.reshape(GRID.side, SIDE // GRID.side, GRID.side, -1).all(axis=(1, 3))


def test_a_generation(world: TinyWorld, tmp_path: Path, draw: Callable) -> None:
    gif, strip = tmp_path / "steps.gif", tmp_path / "steps.png"
    (tmp_path / "names.txt").write_text("cat\ndog\nfish\n")
    what = ["--classes", "dog", "2", "--class_names", tmp_path / "names.txt", "--cfg", 20]
    draw("generation", *what, "--output", gif, strip)
    orders = locality_aware_orders(2, SIZES, GRID.side, seed=1)
    expected = generated(world, [1, 2], orders, cfg=20.0)
    assert (expected != generated(world, [1, 2], orders)).any()
    decided_in = [step_map(order, SIZES) for order in orders]
    sheet = Sheet(2, captions=["dog", "fish"], titles=step_titles(SIZES), side=SIDE)
    with Image.open(gif) as image:
        assert image.n_frames == STEPS
        for step in range(1, STEPS + 1):
            image.seek(step - 1)
            for found, decided in zip(cells(image, sheet, 2), decided_in, strict=True):
                # 256 colours for all images of a frame: they are rounded.
                np.testing.assert_array_equal(grey_cells(found, 4), decided > step)
        last = sheet.draw(expected, STEPS - 1).quantize(256, dither=Image.Dither.NONE)
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(last.convert("RGB")))
    with Image.open(strip) as image:
        columns = [f"step {step}" for step in range(1, STEPS + 1)]
        found = cells(image, Sheet(STEPS, ["dog", "fish"], columns, side=SIDE), 2 * STEPS)
    for number in range(2):
        row = found[number * STEPS : (number + 1) * STEPS]
        np.testing.assert_array_equal(row[-1], expected[number])
        for step, picture in enumerate(row, start=1):
            np.testing.assert_array_equal(grey_cells(picture, 0), decided_in[number] > step)


def test_samples_with_an_order_file(
    world: TinyWorld, tmp_path: Path, draw, bars, monkeypatch
) -> None:
    orders = locality_aware_orders(4, SIZES, GRID.side, seed=9)
    write_orders(tmp_path / "orders.npy", orders)
    output = tmp_path / "new" / "samples.png"
    (tmp_path / "names.txt").write_text("crane\ndog\ncrane\n")  # ImageNet too has equal names
    what = ["--classes", 0, 2, "--num_images", 4, "--class_names", tmp_path / "names.txt"]
    what += ["--lpd_order_file", tmp_path / "orders.npy", "--output", output]
    sampling = {"cfg": 20.0, "cfg_schedule": "constant", "temperature": 0.5, "top_k": 9}
    monkeypatch.setattr(visualize, "BATCH_SIZE", 3)
    draw("samples", *what, *(word for name in sampling for word in (f"--{name}", sampling[name])))
    assert [(bar.n, bar.unit) for bar in bars] == [(4, "image")]
    expected = generated(world, [0, 0, 2, 2], orders, **sampling)
    with Image.open(output) as image:
        found = cells(image, Sheet(2, row_names=["crane", "crane"], side=SIDE), 4)
    assert np.abs(np.array(found) - expected).max() <= 1  # decoded by the fast path
    for other in ({"cfg": 1.0}, {"cfg_schedule": "linear"}, {"temperature": 1.0}, {"top_k": 0}):
        assert (generated(world, [0, 0, 2, 2], orders, **{**sampling, **other}) != expected).any()


def test_orders(tmp_path: Path, draw: Callable) -> None:
    path = tmp_path / "res32_steps12_mine.json"
    write_orders(path, locality_aware_orders(3, group_sizes(64, 12), 8, seed=1))
    made = ["--generation_steps", 12, "--vqgan_stride", 4, "--img_size", 32]
    for what in (made, ["--lpd_order_file", path, "--orders", "lpd", "lpd:0:2"]):
        output = tmp_path / f"{len(what)}"
        draw("order", *what, "--image_id", 2, "--output_dir", output)
        names = {"order_steps.png", "order_groups.gif", "order_distances.png"}
        assert {path.name for path in output.iterdir()} == names
        with Image.open(output / "order_groups.gif") as image:
            assert image.n_frames == 12


def test_a_training_run_that_was_resumed(world: TinyWorld, tmp_path: Path, draw) -> None:
    run, output = tmp_path / "run", tmp_path / "run.png"
    train = [*world.train_flags(run), "--resume", run]
    succeed("main_lpd.py", *train, "--epochs", 1)
    succeed("main_lpd.py", *train, "--epochs", 3)
    draw("training", "--log_dir", run, "--output", output)
    with Image.open(output) as image:
        assert image.format == "PNG" and image.width > 1000
    history = visualize.read_history(run)
    assert history.resumed == [3] and history.steps_per_epoch == 3
    assert history.curves["train/loss"].steps.tolist() == list(range(9))
