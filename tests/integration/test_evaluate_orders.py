"""The study of orders through its command, on one process and on two."""

import ast
import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from orders.group_sizes import training_group_sizes
from orders.sources import ORDERS
from scripts import evaluate_orders
from tests.commands import ROOT, run_program, succeed
from tests.few_digits import few_digits
from tests.integration.tiny_world import TinyWorld
from util.run_record import revision, versions


def flags(world: TinyWorld) -> list[str]:
    files = ["--pretrained_ckpt", str(world.checkpoint), "--cached_path", str(world.cache)]
    return ["scripts/evaluate_orders.py", *files, "--device", "cpu", "--batch_size", "10"]


def study(world: TinyWorld, output: Path, *more: str, processes: int | None = None) -> dict:
    succeed(*flags(world), "--output", output, *more, processes=processes)
    return json.loads(output.read_text())


def test_a_file_says_what_made_it(world: TinyWorld, tmp_path: Path) -> None:
    found = {}
    for number in ("4", "5"):
        output = tmp_path / f"{number}.json"
        evaluate_orders.main([*flags(world)[1:], "--output", str(output), "--num_images", number])
        found[number] = json.loads(output.read_text())
    four = found["4"]
    assert four["code"] == revision() and four["versions"] == versions()
    assert four["checkpoint"] == str(world.checkpoint)
    content = hashlib.sha256(world.checkpoint.read_bytes()).hexdigest()
    assert four["checkpoint_sha256"] == content == found["5"]["checkpoint_sha256"]
    assert four["images_sha256"] != found["5"]["images_sha256"]
    classes = ast.literal_eval(four["class_by_image"])
    assert classes == ["class0", "class0", "class1", "class2"]  # 0, 12, 24 and 36 of 48
    # By default the orders that need no file, in the steps of training.
    settings = [(len(sizes), order) for sizes in training_group_sizes(16) for order in ORDERS]
    assert [(entry["steps"], entry["order"]) for entry in four["results"]] == settings


@pytest.mark.slow
def test_two_processes_write_what_one_does(world: TinyWorld, tmp_path: Path) -> None:
    what = ["--orders", "lpd:2", "random", "raster", "--steps", "16", "5"]
    what += ["--group_sizes", "[4] * 4"]
    plot = tmp_path / "orders.png"
    alone = study(world, tmp_path / "alone.json", *what, "--plot", str(plot))
    both = study(world, tmp_path / "both.json", *what, processes=2)
    assert alone["results"] == both["results"]
    assert alone["num_images"] == 48 and alone["num_tokens"] == 16
    settings = [(entry["steps"], entry["order"]) for entry in alone["results"]]
    kinds = ("lpd:2", "random", "raster")
    assert settings == [(steps, kind) for steps in (16, 5, 4) for kind in kinds]
    assert all(entry["nll"] > 0 and entry["nll_se"] > 0 for entry in alone["results"])
    with Image.open(plot) as image:
        assert image.format == "PNG"


@pytest.mark.slow
def test_a_search_ends_in_an_order_file_that_costs_what_it_says(
    world: TinyWorld, tmp_path: Path
) -> None:
    grid = ["--search", "--steps", "5", "--repulsions", "0", "1", "--proximities", "0", "1"]
    [found] = study(world, tmp_path / "found.json", *grid, "--shapes", "rule", "2")["searches"]
    assert len(found["candidates"]) == 8
    costs = [candidate["nll"] for candidate in found["candidates"]]
    assert costs == sorted(costs)
    best = found["best"]
    # The command as written, but for the file's place and length.
    python, *command = shlex.split(best["order_file_command"])
    assert python == "python"
    orders = tmp_path / "orders.npy"
    succeed(*command, "--num_runs", "48", "--output_file", orders)
    kinds = [str(orders), f"lpd:{best['repulsion']:g}:{best['proximity']:g}"]
    sizes = ["--group_sizes", best["group_sizes"]]
    from_file, made = study(world, tmp_path / "again.json", "--orders", *kinds, *sizes)["results"]
    assert from_file["nll"] == made["nll"]
    # All images: between the half it was chosen on and the half it was confirmed on.
    assert made["nll"] == pytest.approx((costs[0] + best["nll"]) / 2, abs=1e-4)


def table(*arguments: object) -> list[list[str]]:
    """The cells of a table of docs/evidence.md."""
    lines = succeed("scripts/evidence/tables.py", *arguments).stdout.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def run_study(name: str, out: Path, done: Sequence[str], **options: str) -> str:
    """Run the stages of a study but for those that are marked as done."""
    (out / "done").mkdir(exist_ok=True)
    for stage in done:
        (out / "done" / stage).touch()
    script = ROOT / "scripts" / "evidence" / f"{name}.sh"
    options |= dict(OUT=str(out), RESULTS=str(out / "results"), VQ_EPOCHS="1", EPOCHS="1")
    result = run_program("bash", script, timeout=900, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stderr


@pytest.mark.slow
def test_the_digits_study_in_miniature(tmp_path: Path) -> None:
    few_digits(tmp_path / "data", train=16, test=2)
    options = dict(SEEDS="1", NUM_IMAGES="10", SAMPLES="20", STEPS="64 8")
    options["SEARCH"] = "--repulsions 0 --proximities 1 7 --shapes rule"
    run_study("digits", tmp_path, ["data"], **options)
    assert "==" not in run_study("digits", tmp_path, [], **options)  # nothing is done twice

    results = tmp_path / "results"
    file, thresholds = results / "digits_1.json", results / "digits_thresholds_1.json"
    for name in ("nll", "prices"):
        head, _, *rows = table(name, file)
        assert head == ["steps", "lpd", "random", "raster", "random - lpd", "raster - lpd"]
        assert [row[0] for row in rows] == ["64", "8"]
    # Repulsion 1 is what lpd has where nothing is published.
    few, _, *rows = table("nll", file, thresholds, "--orders", "lpd", "lpd:1", "lpd:0:100")
    assert few[-1] == "lpd:0:100 - lpd" and rows[-1][-2] == "0.00 ± 0.00"
    for kind in ("blind", "raster"):
        assert len(table("against", file, results / f"digits_{kind}_1.json")) == 4
    assert len(table("search", results / "digits_search.json")) == 2 + 3
    head, _, *rows = table("samples", results / "digits_samples_1.json")
    assert head[1] == "lpd, accuracy, %"
    assert len(rows) == 2 and all(0 <= float(cell) <= 100 for row in rows for cell in row[1:4])
    with Image.open(results / "digits_1.png") as image:
        assert image.size == (1300, 700)  # a row of generations


@pytest.mark.slow
def test_the_photographs_study_in_miniature(tmp_path: Path) -> None:
    done = ["thresholds-1", "samples-again", "search"]  # which the other study has, too
    options = dict(SPACING="150", NUM_IMAGES="4", SAMPLES="2", STEPS="256 20")
    run_study("photographs", tmp_path, done, **options)
    results = tmp_path / "results"
    assert len(table("nll", results / "photographs_1.json")) == 2 + 2
    assert len(table("yardsticks", results / "photographs_samples_1.json")) == 2 + 2
    with Image.open(results / "photographs_samples_1.png") as image:
        # Real, reconstructed and six rows of samples, one of each class.
        assert image.size == (2 * 66 - 2, 8 * 66 - 2)
    assert not (results / "photographs_search.json").exists()
