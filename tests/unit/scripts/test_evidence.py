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

from scripts.evidence import photographs, studies, tables
from tests.commands import ROOT
from util.errors import UserError


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


def lines(capsys: pytest.CaptureFixture, *arguments: object) -> list[str]:
    tables.main(tables.parse_args(list(map(str, arguments))))
    return capsys.readouterr().out.splitlines()


def test_the_table_pairs_images_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [write_results(tmp_path / f"{shift}.json", shift) for shift in (0, 2, 7)]
    head, _, first, second = lines(capsys, "nll", *files)
    assert head == "| steps | lpd | raster | raster - lpd |"
    assert first == "| 64 | 28.00 ± 6.45 | 31.00 ± 6.73 | 3.00 ± 0.58 |"
    assert second.startswith("| 12 |")


def test_differences_may_be_to_another_order(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [write_results(tmp_path / f"{shift}.json", shift) for shift in (0, 2)]
    head, _, first, _ = lines(capsys, "nll", "--minus", "raster", *files)
    assert head.endswith("| lpd - raster |") and first.endswith("| -3.00 ± 0.58 |")
    with pytest.raises(UserError, match="^--minus: found spiral, expected one of lpd, raster"):
        lines(capsys, "nll", "--minus", "spiral", *files)


@pytest.mark.parametrize(
    ("table", "flag"),
    [
        ("samples", "--minus"),
        ("against", "--minus"),
        ("samples", "--class"),
        ("search", "--orders"),
    ],
)
def test_flags_that_a_table_would_ignore_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, table: str, flag: str
) -> None:
    file = write_results(tmp_path / "a.json", 0, **ABOUT)
    with pytest.raises(UserError, match=f"^{flag}: found with {table}, expected with one of nll"):
        lines(capsys, table, file, flag, "lpd")


def test_each_model_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [write_results(tmp_path / f"s{shift}.json", shift) for shift in (0, 2)]
    more = json.loads(files[1].read_text())
    more["results"][1]["nll_by_image"] = "[13, 23, 33, 43]"  # raster: 1 more than lpd
    files[1].write_text(json.dumps(more))
    head, _, first, _ = lines(capsys, "each", *files)
    assert head == "| steps | raster - lpd, s0 | raster - lpd, s2 |"
    assert first == "| 64 | 3.00 ± 0.58 | 1.00 ± 0.00 |"


def test_a_search_shows_the_best_the_worst_and_the_confirmation(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def candidate(repulsion: int, nll: float, proximity: float = 1.0) -> dict:
        figures = {
            "nll": nll,
            "nll_se": 0.5,
            "minus_published": nll - 80,
            "minus_published_se": 0.1,
        }
        return {"repulsion": repulsion, "proximity": proximity, "shape": "1.5", **figures}

    # Without a proximity pass: the seventh and the eighth.
    candidates = [candidate(n, 70 + n, 7.0 if n in (6, 7) else 1.0) for n in range(9)]
    found = {"steps": 8, "best": candidate(0, 72), "candidates": candidates}
    (tmp_path / "a.json").write_text(json.dumps({"searches": [found]}))
    head, _, *found = lines(capsys, "search", tmp_path / "a.json")
    assert head.startswith("| steps | images | rank | repulsion | proximity | sizes | nats | minus")
    ranks = [row.split(" | ")[2] for row in found]
    assert ranks == ["1", "2", "3", "4", "5", "7", "9", "1"]
    assert found[1] == "| 8 | chosen on | 2 | 1 | 1 | 1.5 | 71.00 ± 0.50 | -9.00 ± 0.10 |"
    assert found[5] == "| 8 | chosen on | 7 | 6 | 7 | 1.5 | 76.00 ± 0.50 | -4.00 ± 0.10 |"
    assert found[-1] == "| 8 | the others | 1 | 0 | 1 | 1.5 | 72.00 ± 0.50 | -8.00 ± 0.10 |"
    study = write_results(tmp_path / "b.json", 0)
    with pytest.raises(UserError, match=r"b.json holds no searches, expected some$"):
        lines(capsys, "search", study)


def test_prices_are_paired_over_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [write_results(tmp_path / f"{shift}.json", shift) for shift in (0, 2)]
    head, _, first, _ = lines(capsys, "prices", *files)
    assert head == "| steps | lpd | raster | raster - lpd |"
    assert first == "| 64 | 1.50 ± 0.29 | 2.00 ± 0.41 | 0.50 ± 0.29 |"
    old = json.loads(files[0].read_text().replace("price_by_image", "something"))
    files[0].write_text(json.dumps(old))
    with pytest.raises(UserError, match="0.json has no price_by_image, expected it of every"):
        lines(capsys, "prices", files[0])


def test_orders_one_token_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [write_results(tmp_path / f"{shift}.json", shift) for shift in (0, 2)]
    head, _, first, _ = lines(capsys, "alone", files[0])
    assert (head, first) == ("| steps | lpd | raster |", "| 64 | 23.50 | 26.00 |")
    assert lines(capsys, "alone", *files)[2].startswith("| 64 | 24.50 (23.50-25.50) |")
    # Raster's nats alone exceed those of lpd by 1, 4, 2 and 3.
    head, _, first, _ = lines(capsys, "alone", "--minus", "lpd", *files)
    assert head == "| steps | lpd | raster | raster - lpd |"
    assert first.endswith("| 2.50 ± 0.65 |")


def test_two_results_of_one_order_are_refused(tmp_path: Path) -> None:
    path = write_results(tmp_path / "a.json", 0, ("lpd", "lpd"))
    with pytest.raises(UserError, match="holds 4 results of 2 steps and orders, expected one of"):
        studies.read_study(path)
    path.write_text('{"searches": []}')
    with pytest.raises(UserError, match="holds 0 results"):
        studies.read_study(path)
    path.write_text("nothing")
    with pytest.raises(UserError, match=r"^files: .*a.json: Expecting value"):
        studies.read_study(path)


def test_models_are_compared_image_by_image(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [write_results(tmp_path / f"{shift}.json", shift) for shift in (0, 2, 5, 3)]
    _, _, first, _ = lines(capsys, "against", *files)
    assert first == "| 64 | 29.00 ± 6.45 | 32.00 ± 6.73 | 3.00 ± 0.00 | 3.00 ± 0.00 |"
    with pytest.raises(UserError, match="found 3 models, expected as many of one as of the"):
        lines(capsys, "against", *files[:3])


def test_files_of_one_model_are_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one = write_results(tmp_path / "a.json", 0, **ABOUT)
    more = write_results(tmp_path / "b.json", 1, ("random",), **ABOUT)
    head, _, first, _ = lines(capsys, "nll", one, more, "--minus", "random")
    assert head == "| steps | lpd | raster | random | lpd - random | raster - random |"
    # lpd 10, 20, 30, 40; raster 12, 24, 32, 44; random 11, 21, 31, 41
    assert first.split(" | ")[1:4] == ["25.00 ± 6.45", "28.00 ± 6.73", "26.00 ± 6.45"]
    assert first.endswith("| -1.00 ± 0.00 | 2.00 ± 0.58 |")
    assert lines(capsys, "nll", one, more, "--orders", "random", "lpd")[0] == (
        "| steps | random | lpd | lpd - random |"
    )
    with pytest.raises(UserError, match=r"^--orders: found near, expected some of lpd, raster, ra"):
        lines(capsys, "nll", one, more, "--orders", "near")
    with pytest.raises(UserError, match=r"a.json and .*a.json are of one model and both hold "):
        lines(capsys, "nll", one, one)
    # Another model, or the same otherwise measured, is averaged with the first.
    for other in ({"checkpoint_sha256": "c2"}, {"seed": 1}, {"bf16": True}):
        again = write_results(tmp_path / "c.json", 2, **{**ABOUT, **other})
        assert "| 64 | 26.00 ± 6.45 |" in lines(capsys, "nll", one, again)[2]
    # The same file from elsewhere is the same model.
    moved = write_results(tmp_path / "d.json", 0, **{**ABOUT, "checkpoint": "elsewhere.pth"})
    with pytest.raises(UserError, match="are of one model"):
        lines(capsys, "nll", one, moved)


def test_only_steps_that_all_models_have_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    one = write_results(tmp_path / "a.json", 0, **ABOUT)
    more = write_results(tmp_path / "b.json", 0, ("random",), **ABOUT)
    content = json.loads(more.read_text())
    more.write_text(json.dumps({**content, "results": content["results"][1:]}))
    assert [line[:5] for line in lines(capsys, "nll", one, more)[2:]] == ["| 12 "]
    assert len(lines(capsys, "nll", one, more, "--orders", "lpd")) == 4
    other = write_results(tmp_path / "c.json", 0, ("random",))
    with pytest.raises(UserError, match="found no number of steps with lpd, raster, random of"):
        lines(capsys, "nll", one, other)


@pytest.mark.parametrize("table", ["nll", "prices", "alone", "against", "samples"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images_sha256", "i2"),
        ("data_set", "photographs"),
        ("num_images", 3),
        ("num_tokens", 16),
        ("samples", 9),
        ("cfg", 2.0),
    ],
)
def test_other_images_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, table: str, name: str, value: object
) -> None:
    said = {**ABOUT, "data_set": "digits", "samples": 500, "cfg": 1.0}
    one = write_results(tmp_path / "a.json", 0, **said)
    two = write_results(tmp_path / "b.json", 0, **{**said, "checkpoint_sha256": "c2", name: value})
    message = f"^files: .*b.json has {name} {value}, expected {said[name]} as in .*a.json$"
    with pytest.raises(UserError, match=message):
        lines(capsys, table, one, two)


def test_images_are_known_by_content_else_by_their_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    one = write_results(tmp_path / "a.json", 0, **ABOUT)
    moved = {**ABOUT, "checkpoint_sha256": "c2", "cache": "elsewhere"}
    two = write_results(tmp_path / "b.json", 0, **moved)
    assert len(lines(capsys, "nll", one, two)) == 4
    del moved["images_sha256"]
    write_results(two, 0, **moved)
    with pytest.raises(UserError, match=r"b.json has cache elsewhere, expected held_out as in"):
        lines(capsys, "nll", one, two)


def test_images_of_one_class(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write_results(tmp_path / "a.json", 0, **ABOUT)
    # lpd 10, 20, 30, 40; raster 12, 24, 32, 44
    found = lines(capsys, "nll", "--class", "b", file)[2]
    assert found == "| 64 | 25.00 ± 5.00 | 28.00 ± 4.00 | 3.00 ± 1.00 |"
    found = lines(capsys, "prices", "--class", "a", file)[2]
    assert found == "| 64 | 1.50 ± 0.50 | 2.50 ± 0.50 | 1.00 ± 0.00 |"
    assert lines(capsys, "alone", "--class", "a", file)[2] == "| 64 | 23.50 | 25.50 |"
    with pytest.raises(UserError, match=r"^--class: found d for .*a.json, expected a, b$"):
        lines(capsys, "nll", "--class", "d", file)
    write_results(file, 0, **{**ABOUT, "class_by_image": "['a', 'b', 'b', 'b']"})
    with pytest.raises(UserError, match=r"^--class: found one image of a, expected at least 2"):
        lines(capsys, "nll", "--class", "a", file)
    write_results(file, 0)
    with pytest.raises(UserError, match=r"expected a file that names its images' classes$"):
        lines(capsys, "nll", "--class", "a", file)


def test_samples_come_with_their_range(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [write_results(tmp_path / f"{shift}.json", shift, ("lpd",)) for shift in (0, 2)]
    assert lines(capsys, "samples", *files)[2] == "| 64 | 91.0 (90.0-92.0) | 51.0 (50.0-52.0) |"
    assert lines(capsys, "samples", files[0])[2] == "| 64 | 90.0 | 50.0 |"


def test_yardsticks_are_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "a.json"
    real = {"class_accuracy": 0.9, "frechet_distance": 1.26, "frechet_distance_held_out": 7}
    results = [{"steps": 4, "order": "lpd"}]
    made = {**real, "frechet_distance": 9.99}
    found = {"real": real, "reconstructed": made, "results": results}
    path.write_text(json.dumps(found))
    head, _, *rows = lines(capsys, "yardsticks", path)
    assert head == "| images | accuracy, % | Frechet distance | to held-out crops |"
    assert rows == ["| real | 90.0 | 1.3 | 7.0 |", "| reconstructed | 90.0 | 10.0 | 7.0 |"]
    del real["frechet_distance_held_out"], found["reconstructed"]
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match="found no real and reconstructed, expected them of every"):
        lines(capsys, "yardsticks", path)
    with pytest.raises(UserError, match="^files: .*no.json does not exist"):
        lines(capsys, "yardsticks", tmp_path / "no.json")
    path.write_text("[]")
    with pytest.raises(UserError, match="^files: .*a.json holds a list, expected an object$"):
        lines(capsys, "yardsticks", path)


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
    for part, found in columns.items():
        for path in (tmp_path / part).rglob("*.png"):
            with Image.open(path) as image:
                crop = np.asarray(image).astype(int)
            assert crop.shape == (64, 64, 3)
            found |= set((256 * crop[..., 0] + crop[..., 1]).ravel().tolist())
    assert columns["train"] <= set(range(448)) and max(columns["train"]) > 437
    assert columns["test"] == set(range(448, 640))
    assert columns["held_out"] <= columns["test"] and len(columns["held_out"]) > 180


def test_crops_of_both_photographs(tmp_path: Path) -> None:
    photographs.main(photographs.parse_args(["--output", str(tmp_path)]))
    counts = {
        (part, name): len(list((tmp_path / part / name).glob("*.png")))
        for part in ("train", "test", "held_out")
        for name in photographs.PHOTOGRAPHS
    }
    assert counts == {
        **{("train", name): 39 * 37 for name in photographs.PHOTOGRAPHS},
        **{("test", name): 18 for name in photographs.PHOTOGRAPHS},
        **{("held_out", name): 13 * 37 for name in photographs.PHOTOGRAPHS},
    }
    with Image.open(tmp_path / "test" / "china" / "0017.png") as image:
        assert image.size == (64, 64)
    with pytest.raises(UserError, match="^--output: .* is not empty, expected a new folder$"):
        photographs.main(photographs.parse_args(["--output", str(tmp_path)]))


def test_the_pages_tables_are_what_their_commands_print(
    capsys: pytest.CaptureFixture,
) -> None:
    page = (ROOT / "docs" / "evidence.md").read_text()
    tables_of = re.findall(r"`python (scripts/evidence/tables\.py .*)`\n\n((?:\|.*\n)+)", page)
    assert len(tables_of) == page.count("scripts/evidence/tables.py") > 15
    for command, printed in tables_of:
        _, *words = shlex.split(command)
        files = [sorted(ROOT.glob(word)) if word.endswith(".json") else [word] for word in words]
        assert lines(capsys, *itertools.chain(*files)) == printed.splitlines(), command
