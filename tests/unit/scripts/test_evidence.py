"""The parts of the studies that are not commands of the project."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.evidence import photographs, tables
from tests.commands import ROOT
from util.errors import UserError

# What scripts/evaluate_orders.py says of a study.
ABOUT = {
    "checkpoint": "seed1/checkpoint-last.pth",
    "checkpoint_sha256": "c1",
    "cache": "held_out",
    "images_sha256": "i1",
    "num_images": 4,
    "class_by_image": "['a', 'b', 'b', 'a']",
    "num_tokens": 64,
    "seed": 0,
    "bf16": False,
}


def write_results(
    path: Path, shift: float, orders: tuple[str, ...] = ("lpd", "raster"), **about: object
) -> Path:
    """Four images; raster costs 2, 4, 2, 4 more than lpd, `shift` is added to all."""
    images = np.array([10.0, 20.0, 30.0, 40.0]) + shift
    results = [
        {
            "steps": steps,
            "order": order,
            "price_by_image": str([1.0 + number, 2.0, 1.0, 2.0 + number]),
            "nll_by_image": str((images + number * np.array([2, 4, 2, 4])).tolist()),
            "class_accuracy": 0.9 + 0.01 * shift,
            "frechet_distance": 50 + shift,
        }
        for steps in (64, 12)
        for number, order in enumerate(orders)
    ]
    path.write_text(json.dumps({**about, "results": results}))
    return path


@pytest.fixture
def lines(capsys: pytest.CaptureFixture):
    """The lines of a table."""

    def run(*arguments: object) -> list[str]:
        tables.main(tables.parse_args(list(map(str, arguments))))
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def refused(lines):
    """Assert that a table is refused with a line."""

    def run(message: str, *arguments: object) -> None:
        with pytest.raises(UserError, match=message):
            lines(*arguments)

    return run


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [write_results(tmp_path / f"s{shift}.json", shift) for shift in (0, 2)]


def test_every_table_of_the_page_is_what_its_command_prints(lines) -> None:
    page = (ROOT / "docs" / "evidence.md").read_text().replace("\\\n", " ")
    commands = re.findall(
        r"python (scripts/evidence/tables\.py [^`\n]*)`?\n(?:```\n)?\n((?:\|.*\n)+)", page
    )
    assert len(commands) == page.count("scripts/evidence/tables.py") > 15
    shown = set()
    for command, printed in commands:
        _, *words = shlex.split(command)
        files = [sorted(ROOT.glob(word)) if word.endswith(".json") else [word] for word in words]
        assert lines(*itertools.chain(*files)) == printed.splitlines(), command
        shown.add(words[0])
    assert shown == tables.TABLES.keys()


@pytest.mark.parametrize(
    ("arguments", "head", "first"),
    [
        # Images are paired, models averaged.
        ("nll", "lpd | raster | raster - lpd", "26.00 ± 6.45 | 29.00 ± 6.73 | 3.00 ± 0.58"),
        ("prices", "lpd | raster | raster - lpd", "1.50 ± 0.29 | 2.00 ± 0.41 | 0.50 ± 0.29"),
        ("alone", "lpd | raster", "24.50 (23.50-25.50) | 27.00 (26.00-28.00)"),
        # Raster's nats alone exceed those of lpd by 1, 4, 2 and 3.
        ("alone --minus lpd", "lpd | raster | raster - lpd", "2.50 ± 0.65"),
        (
            "samples --orders lpd",
            "lpd, accuracy, % | lpd, Frechet distance",
            "91.0 (90.0-92.0) | 51.0 (50.0-52.0)",
        ),
        ("against --orders lpd", "lpd | lpd, minus the first model", "27.00 ± 6.45 | 2.00 ± 0.00"),
    ],
)
def test_tables_by_hand(lines, two: list[Path], arguments: str, head: str, first: str) -> None:
    table, *flags = arguments.split()
    title, _, *rows = lines(table, *two, *flags)
    assert title == f"| steps | {head} |"
    assert rows[0].startswith("| 64 | ") and rows[0].endswith(f" {first} |")
    assert rows[1].startswith("| 12 | ") and len(rows) == 2


def test_flags_that_do_not_fit_are_refused(refused, two: list[Path]) -> None:
    for table, flag in (
        *(("samples", "--minus"), ("against", "--minus"), ("samples", "--class")),
        ("search", "--orders"),
    ):
        refused(f"^unrecognized arguments: {flag}", table, *two, flag, "lpd")
    for flag in ("--minus", "--orders"):
        refused(f"^{flag}: found spiral, expected some of lpd, raster", "nll", *two, flag, "spiral")


def test_files_of_one_model_are_one(lines, refused, tmp_path: Path) -> None:
    one = write_results(tmp_path / "a.json", 0, **ABOUT)
    more = write_results(tmp_path / "b.json", 1, ("random",), **ABOUT)
    head, _, first, _ = lines("nll", one, more, "--minus", "random")
    assert head == "| steps | lpd | raster | random | lpd - random | raster - random |"
    # lpd 10, 20, 30, 40; raster 12, 24, 32, 44; random 11, 21, 31, 41
    assert first.split(" | ")[1:4] == ["25.00 ± 6.45", "28.00 ± 6.73", "26.00 ± 6.45"]
    assert first.endswith("| -1.00 ± 0.00 | 2.00 ± 0.58 |")
    refused(r"a.json and .*a.json are of one model and both hold ", "nll", one, one)
    # Another model, or the same otherwise measured, is averaged with the first.
    for other in ({"checkpoint_sha256": "c2"}, {"seed": 1}, {"bf16": True}):
        again = write_results(tmp_path / "c.json", 2, **{**ABOUT, **other})
        assert "| 64 | 26.00 ± 6.45 |" in lines("nll", one, again)[2]
    # The same file from elsewhere is the same model.
    moved = write_results(tmp_path / "d.json", 0, **{**ABOUT, "checkpoint": "elsewhere.pth"})
    refused("are of one model", "nll", one, moved)
    # Only steps that all models have are shown.
    content = json.loads(more.read_text())
    more.write_text(json.dumps({**content, "results": content["results"][1:]}))
    assert [line[:5] for line in lines("nll", one, more)[2:]] == ["| 12 "]
    other = write_results(tmp_path / "e.json", 0, ("random",))
    refused("found no number of steps with lpd, raster, random of", "nll", one, other)


def test_other_images_are_refused(lines, refused, tmp_path: Path) -> None:
    said = {**ABOUT, "data_set": "digits", "samples": 500, "cfg": 1.0}
    one = write_results(tmp_path / "a.json", 0, **said)
    others = {"images_sha256": "i2", "data_set": "photographs", "num_images": 3, "num_tokens": 16}
    for name, value in {**others, "samples": 9, "cfg": 2.0}.items():
        other = {**said, "checkpoint_sha256": "c2", name: value}
        two = write_results(tmp_path / "b.json", 0, **other)
        message = f"^files: .*b.json has {name} {value}, expected {said[name]} as in .*a.json$"
        for table in ("nll", "samples"):
            refused(message, table, one, two)
    # Images are known by content, else by their cache.
    moved = {**said, "checkpoint_sha256": "c2", "cache": "elsewhere"}
    assert len(lines("nll", one, write_results(two, 0, **moved))) == 4
    del moved["images_sha256"]
    write_results(two, 0, **moved)
    refused(r"b.json has cache elsewhere, expected held_out as in", "nll", one, two)


def test_images_of_one_class(lines, refused, tmp_path: Path) -> None:
    file = write_results(tmp_path / "a.json", 0, **ABOUT)
    # lpd 10, 20, 30, 40; raster 12, 24, 32, 44
    row = lines("nll", "--class", "b", file)[2]
    assert row == "| 64 | 25.00 ± 5.00 | 28.00 ± 4.00 | 3.00 ± 1.00 |"
    refused(r"^--class: found d for .*a.json, expected a, b$", "nll", "--class", "d", file)
    write_results(file, 0, **{**ABOUT, "class_by_image": "['a', 'b', 'b', 'b']"})
    refused(r"^--class: found one image of a, expected at least 2", "nll", "--class", "a", file)
    write_results(file, 0)
    refused(r"expected a file that names its images' classes$", "nll", "--class", "a", file)


def test_what_is_no_study_is_refused(refused, two: list[Path], tmp_path: Path) -> None:
    refused("found no real and reconstructed, expected them of every", "yardsticks", *two)
    refused(r"s0.json holds no searches, expected some$", "search", *two)
    refused("found 1 models, expected as many of one as of the", "against", two[0])
    two[0].write_text(two[0].read_text().replace("price_by_image", "something"))
    refused("s0.json has no price_by_image, expected it of every", "prices", *two)
    path = write_results(tmp_path / "a.json", 0, ("lpd", "lpd"))
    refused("holds 4 results of 2 steps and orders, expected one of", "nll", path)
    for content, message in (
        ('{"searches": []}', "holds 0 results"),
        ("nothing", r"^files: .*a.json: Expecting value"),
        ("[]", "^files: .*a.json holds a list, expected an object$"),
    ):
        path.write_text(content)
        refused(message, "yardsticks", path)
    refused("^files: .*no.json does not exist", "nll", tmp_path / "no.json")


def test_no_pixel_is_both_trained_on_and_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A picture whose pixels tell their column.
    column = np.arange(640)
    pixels = np.stack([column // 256, column % 256, column * 0], axis=1).astype(np.uint8)
    picture = np.broadcast_to(pixels, (427, 640, 3))
    monkeypatch.setattr(photographs, "load_sample_image", lambda _: picture)
    photographs.main(photographs.parse_args(["--output", str(tmp_path)]))
    columns = {"train": set(), "test": set(), "held_out": set()}
    counts = dict(train=39 * 37, test=18, held_out=13 * 37)
    for part, found in columns.items():
        for name in photographs.PHOTOGRAPHS:
            paths = list((tmp_path / part / name).glob("*.png"))
            assert len(paths) == counts[part]
            for path in paths:
                with Image.open(path) as image:
                    crop = np.asarray(image).astype(int)
                assert crop.shape == (64, 64, 3)
                found |= set((256 * crop[..., 0] + crop[..., 1]).ravel().tolist())
    assert columns["train"] <= set(range(448)) and max(columns["train"]) > 437
    assert columns["test"] == set(range(448, 640))
    assert columns["held_out"] <= columns["test"] and len(columns["held_out"]) > 180
    with pytest.raises(UserError, match="^--output: .* is not empty, expected a new folder$"):
        photographs.main(photographs.parse_args(["--output", str(tmp_path)]))
