import json
from pathlib import Path

import pytest

from visualization.class_names import parse_classes, read_class_names


def test_without_names_classes_are_numbers() -> None:
    assert read_class_names(None, 2) == ["class 0", "class 1"]


def test_digits_have_names_of_their_own() -> None:
    assert read_class_names("digits", 10)[3] == "three"
    with pytest.raises(ValueError, match="digits names 10 classes, expected the 3 of the model"):
        read_class_names("digits", 3)


@pytest.mark.parametrize(
    "content",
    [
        ["tench, Tinca tinca", "house_finch"],
        {"1": "house finch, linnet", "0": "tench"},
        {"0": ["n01440764", "tench"], "1": ["n01532829", "house_finch"]},
    ],
)
def test_usual_json_files_are_read(tmp_path: Path, content: object) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps(content))
    assert read_class_names(str(path), 2) == ["tench", "house finch"]


def test_text_has_a_name_a_line(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("tench, Tinca tinca\njalapeño\n\n")
    assert read_class_names(str(tmp_path / "names.txt"), 2) == ["tench", "jalapeño"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["a"', "names.json: Expecting"),
        ("[" * 100_000, "names.json: damaged JSON"),
        ("3", "found int, expected a list of names, or names by number"),
        ('["a", 3]', "found 3 in the place of a name, expected text"),
        ('["a", []]', "found \\[\\] in the place of a name"),
        ('{"0": "a", "2": "b"}', "found keys other than 0..1"),
        ('["a"]', "names 1 classes, expected the 2 of the model"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_class_names(str(tmp_path / "names.json"), 2)


def test_classes_by_number_and_name() -> None:
    names = ["tench", "crane", "crane", "7"]
    assert parse_classes(["1", "Tench", "3"], names) == [1, 0, 3]
    assert parse_classes(["7"], names) == [3]
    with pytest.raises(ValueError, match=r"found classes \[1, 2\] of that name, expected 0..3"):
        parse_classes(["crane"], names)
    for wrong in ("4", "-1", "whale", "9" * 5000):
        with pytest.raises(ValueError, match="expected 0..3 or the name of one class"):
            parse_classes([wrong], names)


def test_by_default_ten_classes_spread_over_all() -> None:
    assert parse_classes(None, ["a"] * 4) == [0, 1, 2, 3]
    assert parse_classes(None, ["a"] * 1000) == list(range(0, 1000, 100))
