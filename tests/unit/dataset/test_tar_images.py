"""Image folders inside a tar are listed and read as the folders are."""

import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.image_folder import ImageList, image_batches, list_images
from util.errors import UserError

NAMES = ("b/2.png", "b/10.JPG", "b/deep/1.jpeg", "a/x.bmp", "a/y.PNG", "a b/1.png", "a-b/1.png")
NAMES += (f"b/{'long' * 60}.png", "b/é.png")


def _fill(folder: Path) -> None:
    for value, name in enumerate(NAMES):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (value * 20, 0, 255)).save(file)
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / "a" / "._x.png").write_text("no image")
    (folder / ".hidden").mkdir()
    (folder / "readme.png").touch()


def _pack(tar: Path, *members: tuple[Path, str], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(tar, "w:", format=format) as archive:
        for path, name in members:
            archive.add(path, name)
    return tar


def _assert_same(found: ImageList, expected: ImageList, num_workers: int = 0) -> None:
    assert found.classes == expected.classes
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert [Path(name).name for name in found.paths] == [path.name for path in expected.paths]
    batches = [np.array([len(found) - 1, 0]), np.arange(len(found))]
    for a, b in zip(
        image_batches(found, 8, batches, num_workers),
        image_batches(expected, 8, batches),
        strict=True,
    ):
        assert a.images.equal(b.images) and a.labels.equal(b.labels) and a.indices.equal(b.indices)


@pytest.mark.parametrize("prefix", ["", "./", "train/", "./train/", "any/train/", "any/"])
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_every_layout_is_the_folder_it_was_made_from(
    tmp_path: Path, prefix: str, format: int
) -> None:
    folder = tmp_path / "data"
    _fill(folder)
    if prefix == "any/":  # an image of its own would make it a class
        (folder / "readme.png").unlink()
    # In the system's order, which is not the sorted one, and without an entry for the prefix.
    members = [(path, f"{prefix}{path.name}") for path in folder.iterdir()]
    if "/train" in f"/{prefix}":
        members.append((folder / "b", prefix.replace("train", "val") + "other"))
        members.append((folder / "b" / "2.png", prefix.replace("train/", "stray.png")))
    tar = _pack(tmp_path / "images.tar", *members, format=format)
    found = list_images(tar)
    _assert_same(found, list_images(folder))
    _assert_same(pickle.loads(pickle.dumps(found)), list_images(folder), num_workers=2)


def test_a_class_of_images_alone_is_not_taken_for_the_packed_folder(tmp_path: Path) -> None:
    _fill(tmp_path / "data")
    images = list_images(_pack(tmp_path / "b.tar", (tmp_path / "data" / "b", "b")))
    assert images.classes == ("b",)
    assert len(images) == 5


def test_the_last_of_two_members_of_a_name_counts(tmp_path: Path) -> None:
    for value, name in enumerate(("old", "new")):
        Image.new("RGB", (9, 9), (value, 0, 0)).save(tmp_path / f"{name}.png")
    tar = _pack(
        tmp_path / "x.tar", *((tmp_path / f"{name}.png", "a/1.png") for name in ("old", "new"))
    )
    (batch,) = image_batches(list_images(tar), 8, [np.arange(1)])
    assert batch.images.max() == 1


def _link(folder: Path) -> Path:
    (folder / "link.png").symlink_to("2.png")
    return _pack(folder / "x.tar", (folder / "link.png", "b/link.png"))


def _empty_class(folder: Path) -> Path:
    (folder / "c").mkdir()
    (folder / "readme.png").unlink()
    return _pack(folder / "x.tar", (folder, "data"))


def _cut(folder: Path) -> Path:
    tar = _pack(folder / "x.tar", *((folder / name, name) for name in NAMES))
    tar.write_bytes(tar.read_bytes()[:1100])
    return tar


def _damaged(folder: Path, cut: int = 0, change: bytes | None = None) -> Path:
    """Cut behind the first member, by so many bytes of the second's header, or changed there."""
    tar = _pack(folder / "x.tar", *((folder / name, name) for name in NAMES))
    content = tar.read_bytes()
    with tarfile.open(tar) as archive:
        start = archive.getmembers()[1].offset
    if change is None:
        tar.write_bytes(content[: start + cut])
    else:
        tar.write_bytes(content[:start] + change + content[start + len(change) :])
    return tar


def _doubled(folder: Path) -> Path:
    tar = _pack(folder / "x.tar", (folder / "b", "b"))
    tar.write_bytes(2 * tar.read_bytes())
    return tar


def _compressed(folder: Path, kind: str) -> Path:
    with tarfile.open(folder / "x.tar", f"w:{kind}") as archive:
        archive.add(folder / "b", "b")
    return folder / "x.tar"


def _sparse(folder: Path) -> Path:
    """GNU tar's old form: type S, no extents."""
    member = tarfile.TarInfo("b/1.png")
    member.type = tarfile.GNUTYPE_SPARSE
    with tarfile.open(folder / "x.tar", "w:", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(member)
    return folder / "x.tar"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: _compressed(f, "gz"), r"is compressed \(gzip\), expected an uncompressed tar"),
        (lambda f: _compressed(f, "bz2"), r"is compressed \(bzip2\)"),
        (lambda f: _compressed(f, "xz"), r"is compressed \(xz\)"),
        (_link, "b/link.png is a link or special file, expected plain files only"),
        (_sparse, "b/1.png is a sparse file"),
        (_cut, "is (cut short|no readable tar)"),
        (_damaged, "is cut short or damaged at byte"),
        (lambda f: _damaged(f, cut=100), "is cut short or damaged at byte"),
        (lambda f: _damaged(f, change=b"\xff"), "is cut short or damaged at byte"),
        (lambda f: _damaged(f, change=bytes(512)), "goes on after its end"),
        (_doubled, "goes on after its end, expected one tar, not several in a row"),
        (_empty_class, r"class folder .*x.tar: data/c holds no images"),
        (lambda f: f / "readme.png", "is not a folder, .* no readable tar"),
        (lambda f: _pack(f / "x.tar", (f / "b" / "2.png", "2.png")), "holds no class folders"),
    ],
)
def test_unusable_tars_are_one_line(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    _fill(tmp_path)
    with pytest.raises(UserError, match=f"^--data_path: .*{message}") as caught:
        list_images(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_damaged_members_are_named(tmp_path: Path) -> None:
    _fill(tmp_path)
    (tmp_path / "b" / "2.png").write_text("no image")
    images = list_images(_pack(tmp_path / "x.tar", (tmp_path / "b", "b")))
    with pytest.raises(UserError, match=r"x\.tar: b/2\.png: cannot be decoded"):
        list(image_batches(images, 8, [np.arange(len(images))]))
    (tmp_path / "x.tar").unlink()
    with pytest.raises(UserError, match=r"x\.tar: b/.*: .*No such file"):
        list(image_batches(pickle.loads(pickle.dumps(images)), 8, [np.arange(1)]))
