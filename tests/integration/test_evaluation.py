"""Evaluation through the real command: images, archive, metrics, and their independence."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orders.locality import locality_aware_orders
from orders.order_file import write_orders
from tests.commands import succeed
from tests.integration.tiny_world import GRID, TinyWorld


def images(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in (folder / "images").glob("*.png")}


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )


@pytest.fixture(scope="module")
def reference(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of one process with batches of four."""
    output = tmp_path_factory.mktemp("reference")
    succeed("main_lpd.py", *world.eval_flags(output), "--order", "lpd", "--cfg", "3", "--save_npz")
    return output


def test_images_and_archive(reference: Path) -> None:
    found = images(reference)
    assert sorted(found) == [f"{image_id:05d}.png" for image_id in range(9)]
    with np.load(reference / "samples.npz", allow_pickle=False) as archive:
        samples = archive["arr_0"]
    assert samples.shape == (9, 16, 16, 3) and samples.dtype == np.uint8
    for image_id, sample in enumerate(samples):
        assert np.array_equal(sample, found[f"{image_id:05d}.png"])
    metrics = json.loads((reference / "metrics.json").read_text())
    assert metrics["num_images"] == 9 and metrics["steps"] == 5 and metrics["cfg"] == 3.0


@pytest.mark.parametrize(("processes", "batch_size"), [(None, 9), (2, 2)])
def test_samples_do_not_depend_on_processes_or_batches(
    world: TinyWorld, reference: Path, tmp_path: Path, processes: int | None, batch_size: int
) -> None:
    succeed(
        *("main_lpd.py", *world.eval_flags(tmp_path), "--order", "lpd", "--cfg", "3"),
        *("--eval_bsz", batch_size),
        processes=processes,
    )
    assert same(images(tmp_path), images(reference))


@pytest.mark.parametrize("suffix", [".json", ".npy"])
def test_an_order_file_of_the_same_orders_gives_the_same_images(
    world: TinyWorld, reference: Path, tmp_path: Path, suffix: str
) -> None:
    from orders.group_sizes import group_sizes

    orders = locality_aware_orders(12, group_sizes(GRID.num_tokens, 5), GRID.side, seed=1)
    file = tmp_path / f"orders{suffix}"
    write_orders(file, orders)
    flags = [*world.eval_flags(tmp_path), "--order", "lpd", "--lpd_order_file", file]
    succeed("main_lpd.py", *flags, "--cfg", "3")
    assert same(images(tmp_path), images(reference))


def test_samples_of_an_earlier_larger_run_are_cleared(world: TinyWorld, tmp_path: Path) -> None:
    for count in ("9", "3"):
        succeed("main_lpd.py", *world.eval_flags(tmp_path), "--num_images", count)
    assert len(images(tmp_path)) == 3
