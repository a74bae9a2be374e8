"""Image folders, and tars of them, which are listed and read as the folders are."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.image_folder import image_batches, list_images
from dataset.pictures import center_crop, open_rgb
from util.errors import UserError

# As they are sorted: class by class.
NAMES = ("a/x.bmp", "a/y.PNG", "a b/1.png", "a-b/1.png", "b/10.JPG", "b/2.png", "b/deep/1.jpeg")
NAMES += (f"b/{'long' * 60}.png", "b/é.png")
CLASSES = ("a", "a b", "a-b", "b")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for value, name in enumerate(NAMES):
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (value * 20, 0, 255 - value)).save(file)
    (tmp_path / "data" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "data" / "a" / "._x.png").write_text("no image")
    (tmp_path / "data" / ".hidden").mkdir()
    (tmp_path / "data" / "readme.png").touch()
    return tmp_path / "data"


def test_listing_is_sorted_and_labels_follow_class_names(root: Path) -> None:
    images = list_images(root)
    assert [path.relative_to(root).as_posix() for path in images.paths] == list(NAMES)
    assert images.classes == CLASSES
    assert images.labels.tolist() == [CLASSES.index(name.split("/")[0]) for name in NAMES]
    assert images.labels.dtype == np.int64
    (root / "train" / "only").mkdir(parents=True)
    (root / "a" / "x.bmp").rename(root / "train" / "only" / "1.bmp")
    assert list_images(root).paths == (root / "train" / "only" / "1.bmp",)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_hold_the_crops_in_order_and_a_damaged_file_is_one_line(
    root: Path, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    images = list_images(root)
    wanted = [np.array([4, 0]), np.array([2])]
    state = torch.get_rng_state()
    batches = list(image_batches(images, 8, wanted, num_workers, pin_memory=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert [batch.labels.tolist() for batch in batches] == [[3, 0], [1]]
    assert batches[0].images.dtype == torch.uint8
    for indices, batch in zip(wanted, batches, strict=True):
        expected = [np.asarray(center_crop(open_rgb(images.paths[i]), 8)) for i in indices]
        np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1), expected)

    (root / "b" / "2.png").write_bytes(b"damaged")
    wanted = [np.array([4, 5]), np.array([5]), np.array([6])]
    with pytest.raises(UserError, match=r"^[^\n]*b/2\.png[^\n]*$"):
        list(image_batches(images, 8, wanted, num_workers))
    rest = list(image_batches(images, 8, wanted, num_workers, skip_bad=True))
    assert [batch.images.shape for batch in rest] == [(1, 3, 8, 8), (0, 3, 8, 8), (1, 3, 8, 8)]
    assert [record.getMessage().count("2.png") for record in caplog.records] == [1, 1]


def pack(tar: Path, *members: tuple[Path, str], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(tar, "w:", format=format) as archive:
        for path, name in members:
            archive.add(path, name)
    return tar


@pytest.mark.parametrize("prefix", ["", "./", "train/", "./train/", "any/", "any/train/"])
def test_every_layout_is_the_folder_it_was_made_from(root: Path, prefix: str) -> None:
    if prefix == "any/":  # an image of its own would make it a class
        (root / "readme.png").unlink()
    # In the system's order, which is not the sorted one, and without an entry for the prefix.
    members = [(path, f"{prefix}{path.name}") for path in root.iterdir()]
    if "/train" in f"/{prefix}":
        members.append((root / "b", prefix.replace("train", "val") + "other"))
        members.append((root / "b" / "2.png", prefix.replace("train/", "stray.png")))
    form = tarfile.GNU_FORMAT if prefix == "any/train/" else tarfile.PAX_FORMAT
    packed = list_images(pack(root / "images.tar", *members, format=form))
    expected = list_images(root)
    assert packed.classes == expected.classes
    np.testing.assert_array_equal(packed.labels, expected.labels)
    assert [Path(name).name for name in packed.paths] == [path.name for path in expected.paths]
    batches = [np.array([len(packed) - 1, 0]), np.arange(len(packed))]
    found = image_batches(packed, 8, batches, num_workers=0 if prefix else 2)
    for a, b in zip(found, image_batches(expected, 8, batches), strict=True):
        assert a.images.equal(b.images) and a.labels.equal(b.labels)


def spoilt(folder: Path, cut: int | None) -> Path:
    """Cut short so many bytes behind the start of the second file, or with another behind it."""
    tar = pack(folder / "x.tar", *((folder / name, name) for name in NAMES))
    with tarfile.open(tar) as archive:
        start = archive.getmembers()[1].offset
    content = tar.read_bytes()
    tar.write_bytes(content + bytes(2**22) + content if cut is None else content[: start + cut])
    return tar


def empty_class(folder: Path) -> Path:
    (folder / "c").mkdir()
    (folder / "readme.png").unlink()
    return pack(folder / "x.tar", (folder, "data"))


def sparse(folder: Path) -> Path:
    """GNU tar's old form: type S, no extents."""
    member = tarfile.TarInfo("b/1.png")
    member.type = tarfile.GNUTYPE_SPARSE
    with tarfile.open(folder / "x.tar", "w:", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(member)
    return folder / "x.tar"


@pytest.mark.parametrize(
    ("make", "message"),  # more are in the page of bad input
    [
        (sparse, "b/1.png is a link or a special file"),
        (lambda f: spoilt(f, cut=0), "it is cut short, damaged or several in a row at byte"),
        (lambda f: spoilt(f, cut=None), "several in a row"),
        (empty_class, "class folder .*x.tar/data/c holds no images"),
        (lambda f: pack(f / "x.tar", (f / "b" / "2.png", "2.png")), "holds no class folders"),
    ],
)
def test_unusable_tars_are_one_line(root: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(UserError, match=rf"^--data_path: [^\n]*{message}[^\n]*$"):
        list_images(make(root))


def test_members_are_named_and_the_last_of_a_name_counts(root: Path) -> None:
    tar = pack(root / "y.tar", *((root / "b" / name, "a/1.png") for name in ("é.png", "2.png")))
    (batch,) = image_batches(list_images(tar), 8, [np.arange(1)])
    assert batch.images.max() == 255 - NAMES.index("b/2.png")
    (root / "b" / "2.png").write_text("no image")
    images = list_images(pack(root / "x.tar", (root / "b", "b")))
    assert images.classes == ("b",) and len(images) == 5  # not taken for the packed folder
    with pytest.raises(UserError, match=r"x\.tar: b/2\.png: cannot be decoded"):
        list(image_batches(images, 8, [np.arange(len(images))]))
    (root / "x.tar").unlink()
    with pytest.raises(UserError, match=r"x\.tar: b/.*: .*No such file"):
        list(image_batches(images, 8, [np.arange(1)]))
