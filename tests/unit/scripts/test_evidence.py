"""The parts of the studies that are not commands of the project."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.evidence import photographs, tables
from util.errors import UserError


def write_results(path: Path, shift: float, orders: tuple[str, ...] = ("lpd", "raster")) -> Path:
    """Four images; raster costs 2, 4, 2, 4 more than lpd, `shift` is added to all."""
    images = np.array([10.0, 20.0, 30.0, 40.0]) + shift
    results = [
        {
            "steps": steps,
            "order": order,
            "price": 1.5 + shift + number,
            "price_se": 0.25,
            "price_by_image": str([1.0 + number, 2.0, 1.0, 2.0 + number]),
            "nll_by_image": str((images + number * np.array([2, 4, 2, 4])).tolist()),
            "class_accuracy": 0.9 + 0.01 * shift,
            "frechet_distance": 50 + shift,
        }
        for steps in (64, 12)
        for number, order in enumerate(orders)
    ]
    path.write_text(json.dumps({"results": results}))
    return path


def lines(capsys: pytest.CaptureFixture, *arguments: object) -> list[str]:
    tables.main(tables.parse_args(list(map(str, arguments))))
    return capsys.readouterr().out.splitlines()


def test_the_table_pairs_images_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [write_results(tmp_path / f"{shift}.json", shift) for shift in (0, 2)]
    head, _, first, second = lines(capsys, "nll", *files)
    assert head == "| steps | lpd | raster | price, lpd | price, raster | raster - lpd |"
    assert first == "| 64 | 26.00 ± 6.45 | 29.00 ± 6.73 | 2.50 ± 0.25 | 3.50 ± 0.25 | 3.00 ± 0.58 |"
    assert second.startswith("| 12 |")


def test_differences_may_be_to_another_order(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [write_results(tmp_path / f"{shift}.json", shift) for shift in (0, 2)]
    head, _, first, _ = lines(capsys, "nll", "--minus", "raster", *files)
    assert head.endswith("| lpd - raster |") and first.endswith("| -3.00 ± 0.58 |")
    with pytest.raises(UserError, match="^--minus: found spiral, expected one of lpd, raster"):
        lines(capsys, "nll", "--minus", "spiral", *files)


def test_prices_are_paired_over_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [write_results(tmp_path / f"{shift}.json", shift) for shift in (0, 2)]
    head, _, first, _ = lines(capsys, "prices", *files)
    assert head == "| steps | lpd | raster | raster - lpd |"
    assert first == "| 64 | 1.50 ± 0.29 | 2.00 ± 0.41 | 0.50 ± 0.29 |"
    old = json.loads(files[0].read_text().replace("price_by_image", "something"))
    files[0].write_text(json.dumps(old))
    with pytest.raises(UserError, match="found no price_by_image, expected it of every order"):
        lines(capsys, "prices", files[0])


def test_orders_one_token_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [write_results(tmp_path / f"{shift}.json", shift) for shift in (0, 2)]
    head, _, first, _ = lines(capsys, "alone", files[0])
    assert (head, first) == ("| steps | lpd | raster |", "| 64 | 23.50 | 25.50 |")
    assert lines(capsys, "alone", *files)[2].startswith("| 64 | 23.50 (23.50-23.50) |")


def test_two_results_of_one_order_are_refused(tmp_path: Path) -> None:
    path = write_results(tmp_path / "a.json", 0, ("lpd", "lpd"))
    with pytest.raises(UserError, match="holds 4 results of 2 steps and orders, expected one of"):
        tables.read_results(path)
    path.write_text('{"searches": []}')
    with pytest.raises(UserError, match="holds 0 results"):
        tables.read_results(path)


def test_models_are_compared_image_by_image(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [write_results(tmp_path / f"{shift}.json", shift) for shift in (0, 2, 5, 3)]
    _, _, first, _ = lines(capsys, "against", *files)
    assert first == "| 64 | 29.00 ± 6.45 | 32.00 ± 6.73 | 3.00 ± 0.00 | 3.00 ± 0.00 |"
    with pytest.raises(UserError, match="found 3, expected as many of one model as of the other"):
        lines(capsys, "against", *files[:3])


def test_samples_come_with_their_range(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [write_results(tmp_path / f"{shift}.json", shift, ("lpd",)) for shift in (0, 2)]
    assert lines(capsys, "samples", *files)[2] == "| 64 | 91.0 (90.0-92.0) | 51.0 (50.0-52.0) |"
    assert lines(capsys, "samples", files[0])[2] == "| 64 | 90.0 | 50.0 |"


def test_no_pixel_is_both_trained_on_and_held_out(tmp_path: Path) -> None:
    photographs.main(photographs.parse_args(["--output", str(tmp_path)]))
    counts = {
        (part, name): len(list((tmp_path / part / name).glob("*.png")))
        for part in ("train", "test")
        for name in photographs.PHOTOGRAPHS
    }
    assert counts == {
        **{("train", name): 39 * 37 for name in photographs.PHOTOGRAPHS},
        **{("test", name): 18 for name in photographs.PHOTOGRAPHS},
    }
    with Image.open(tmp_path / "test" / "china" / "0017.png") as image:
        assert image.size == (64, 64)
    # A picture whose pixels tell their column: the crops of each part stay on their side.
    columns = np.broadcast_to(np.arange(640)[:, None] // 3, (427, 640, 3)).astype(np.uint8)
    edge = photographs.FIRST_HELD_OUT_COLUMN
    trained = [crop.max() for crop in photographs.crops(columns[:, :edge], 10)]
    held_out = [crop.min() for crop in photographs.crops(columns[:, edge:], 64)]
    assert max(trained) <= (edge - 1) // 3 <= edge // 3 <= min(held_out)
