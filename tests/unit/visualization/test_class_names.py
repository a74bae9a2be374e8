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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'["a"', "^--class_names: .*a.json: damaged JSON"),
        ("a.json", b'{"0": "a", "2": "b"}', "a.json: found keys other than 0..1"),
        ("a.txt", "jalapeño".encode("latin-1"), "a.txt: .*decode"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_class_names(str(tmp_path / name), 2)


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
