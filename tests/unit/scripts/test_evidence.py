"""The parts of the studies that are not commands of the project."""

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
    **{"checkpoint_sha256": "c1", "images_sha256": "i1", "num_images": 4},
    **{"class_by_image": "['a', 'b', 'b', 'a']", "seed": 0, "bf16": False},
}


def write_results(path: Path, shift: float, orders: str = "lpd raster", **about: object) -> Path:
    """Four images; raster costs 2, 4, 2, 4 more than lpd, `shift` is added to all."""
    results = []
    for steps in (64, 12):
        for number, order in enumerate(orders.split()):
            nll = np.array([10, 20, 30, 40]) + shift + number * np.array([2, 4, 2, 4])
            costs = {"nll_by_image": str(nll.tolist()), "price_by_image": "[1, 2, 1, 2]"}
            results.append({"steps": steps, "order": order, **costs})
    path.write_text(json.dumps({**ABOUT, **about, "results": results}))
    return path


@pytest.fixture
def lines(capsys: pytest.CaptureFixture):
    def run(*arguments: object) -> list[str]:
        tables.main(list(map(str, arguments)))
        return capsys.readouterr().out.splitlines()

    return run


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
    assert shown == {*tables.COSTS, "samples", "yardsticks", "search"}


def test_files_of_one_model_are_one(lines, tmp_path: Path) -> None:
    one = write_results(tmp_path / "a.json", 0)
    more = write_results(tmp_path / "b.json", 1, "random")
    assert lines("alone", one)[0] == "| steps | lpd | raster |"
    head, _, first, _ = lines("nll", one, more, "--minus", "random")
    assert head == "| steps | lpd | raster | random | lpd - random | raster - random |"
    # lpd 10, 20, 30, 40; raster 12, 24, 32, 44; random 11, 21, 31, 41
    assert first.split(" | ")[1:4] == ["25.00 ± 6.45", "28.00 ± 6.73", "26.00 ± 6.45"]
    assert first.endswith("| -1.00 ± 0.00 | 2.00 ± 0.58 |")
    again = write_results(tmp_path / "c.json", 2)
    # Another model, or the same otherwise measured, is averaged with the first.
    for other in ({"checkpoint_sha256": "c2"}, {"seed": 1}, {"bf16": True}):
        write_results(again, 2, **other)
        assert "| 64 | 26.00 ± 6.45 |" in lines("nll", one, again)[2]
    # Only steps that all models have are shown.
    content = json.loads(more.read_text())
    more.write_text(json.dumps({**content, "results": content["results"][1:]}))
    assert [line[:5] for line in lines("nll", one, more)[2:]] == ["| 12 "]


def test_what_cannot_make_a_table_is_refused(lines, tmp_path: Path) -> None:
    one = write_results(tmp_path / "s0.json", 0)

    def refused(message: str, *arguments: object) -> None:
        with pytest.raises(UserError, match=message):
            lines(*arguments)

    file = tmp_path / "a.json"
    for name in ("images_sha256", "data_set", "num_images", "samples", "cfg"):
        write_results(file, 0, checkpoint_sha256="c2", **{name: "x"})
        message = f"^files: .*a.json has {name} x, expected {ABOUT.get(name)} as in .*s0.json$"
        refused(message, "nll", one, file)
    refused("^--orders: found spiral in no number of steps", "nll", one, "--orders", "spiral")
    refused("^--minus: found spiral, expected one of lpd, raster$", "nll", one, "--minus", "spiral")
    refused("^files: .*s0.json has 0 images of --class, exp", "nll", one, "--class", "d")
    write_results(file, 1)
    refused("^files: .*a.json has lpd in 64 steps again, expected it once of", "nll", one, file)
    refused("^files: found no 'real', expected it for yardsticks$", "yardsticks", one)
    refused("^files: found no 'searches'", "search", one)
    refused("^files: found 1 models, expected two halves as large$", "against", one)
    file.write_text("nothing")
    refused("^files: .*a.json: damaged JSON at character 0", "yardsticks", file)
    refused("^files: .*no.json: No such file", "nll", tmp_path / "no.json")


def test_no_pixel_is_both_trained_on_and_held_out(tmp_path: Path, monkeypatch) -> None:
    # Its pixels tell their column.
    row = np.array([(column // 256, column % 256, 0) for column in range(640)], dtype=np.uint8)
    monkeypatch.setattr(photographs, "load_sample_image", lambda _: np.tile(row, (427, 1, 1)))
    photographs.main(["--output", str(tmp_path)])
    columns = {}
    for part, count in dict(train=39 * 37, test=18, held_out=13 * 37).items():
        crops = [np.asarray(Image.open(path)) for path in (tmp_path / part).glob("*/*")]
        assert np.shape(crops) == (2 * count, 64, 64, 3)
        columns[part] = set(np.ravel(np.dot(crops, [256, 1, 0])).tolist())
    assert columns["train"] <= set(range(448)) and max(columns["train"]) > 437
    assert columns["test"] == set(range(448, 640))
    assert columns["held_out"] <= columns["test"] and len(columns["held_out"]) > 180
    with pytest.raises(UserError, match="^--output: .* is not empty, expected a new folder$"):
        photographs.main(["--output", str(tmp_path)])
