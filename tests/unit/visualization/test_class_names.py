import json
from pathlib import Path

import pytest

from visualization.class_names import parse_classes, read_class_names


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(["tench, Tinca tinca", "house_finch"])),
        ("a.json", json.dumps({"1": "house finch, linnet", "0": "tench"})),
        ("a.json", json.dumps({"0": ["n01440764", "tench"], "1": ["n01532829", "house_finch"]})),
        ("a.txt", "tench, Tinca tinca\nhouse finch\n\n"),
    ],
)
def test_names_of_usual_files_or_without_one(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_class_names(str(tmp_path / name), 2) == ["tench", "house finch"]
    assert read_class_names(None, 2) == ["class 0", "class 1"]
    assert read_class_names("digits", 10)[3] == "three"


def test_classes_by_number_and_name_or_ten_spread_over_all() -> None:
    assert parse_classes(None, ["a"] * 4) == [0, 1, 2, 3]
    assert parse_classes(None, ["a"] * 1000) == list(range(0, 1000, 100))
    names = ["tench", "crane", "crane", "7"]
    assert parse_classes(["1", "Tench", "3", "7"], names) == [1, 0, 3, 3]
    with pytest.raises(ValueError, match=r"found classes \[1, 2\] of that name, expected 0..3"):
        parse_classes(["crane"], names)
    for wrong in ("4", "-1", "whale", "9" * 5000):
        with pytest.raises(ValueError, match="expected 0..3 or the name of one class"):
            parse_classes([wrong], names)
