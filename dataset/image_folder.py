"""Image folders, `<root>/<class>/**/<image>`, or tars of them: listed fast, read in batches."""

from __future__ import annotations

import logging
import os
import signal
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dataset.pictures import center_crop, open_rgb
from util.cli import available_cores
from util.errors import UserError, blame
from util.logs import progress
from util.signals import SIGNALS

logger = logging.getLogger(__name__)

# In lower case, with the dot.
IMAGE_SUFFIXES = tuple(".bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class TarMembers:
    """Contents of members of a tar; `places` (n, 2) are their offsets and sizes, bytes."""

    def __init__(self, path: Path, places: np.ndarray) -> None:
        self.path, self._places = path, places

    @cached_property
    def _file(self) -> int:
        return os.open(self.path, os.O_RDONLY)

    def read(self, index: int) -> bytes:
        """Return the content of one member."""
        offset, size = self._places[index].tolist()
        return os.pread(self._file, size, offset)

    def __getstate__(self) -> dict[str, Any]:
        # Every worker process opens the file for itself.
        return {"path": self.path, "_places": self._places}

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            os.close(self._file)


def _tar_files(path: Path) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """List the images of a tar: name -> (offset, size), and all folders; hidden ones left out."""
    places: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    end = path.stat().st_size
    for member in progress(_tar_members(path), desc=f"list {path.name}", unit="file"):
        name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if member.isdir():
            folders.add(name)
        elif name.lower().endswith(IMAGE_SUFFIXES):
            if member.issparse() or not member.isreg():
                kind = "a sparse file" if member.issparse() else "a link or special file"
                raise ValueError(f"{name} is {kind}, expected plain files only")
            if member.offset_data + member.size > end:
                raise ValueError(f"is cut short inside {name}")
            places[name] = (member.offset_data, member.size)  # the last of a name, as in unpacking
            folders.add(name.rpartition("/")[0])
    for folder in list(folders):  # a tar need not hold the folders above its members
        while folder := folder.rpartition("/")[0]:
            folders.add(folder)
    return places, folders - {""}


def _tar_members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of an uncompressed tar."""
    with path.open("rb") as file:
        start = file.read(6)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(f"is compressed ({name}), expected an uncompressed tar")
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                yield member
                tar.members = []  # it would keep a kilobyte for each of a million
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(f"is no readable tar ({error})") from error
    # tarfile takes whatever is no header for the end of the archive.
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(tarfile.BLOCKSIZE)
        if len(rest) < tarfile.BLOCKSIZE or any(rest):
            raise ValueError(f"is cut short or damaged at byte {end}")
        while rest := file.read(2**20):
            if any(rest):
                raise ValueError("goes on after its end, expected one tar, not several in a row")


@dataclass(frozen=True)
class ImageList:
    """The files of an image folder, class by class, sorted by path inside a class."""

    paths: tuple[Path, ...] | tuple[str, ...]  # in a tar, names of members
    labels: np.ndarray  # (n,) int64, indices into `classes`
    classes: tuple[str, ...]  # names, sorted
    tar: TarMembers | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> Image.Image:
        """Decode an image to RGB; raises a `UserError` that names it."""
        path = self.paths[index]
        if self.tar is None:
            return open_rgb(path)
        name = f"{self.tar.path}: {path}"
        with blame(name):
            content = self.tar.read(index)
        return open_rgb(BytesIO(content), name)


class ImageBatch(NamedTuple):
    """Decoded and cropped images."""

    images: torch.Tensor  # (B, 3, S, S) uint8, channels last in memory
    labels: torch.Tensor  # (B,) int64


def list_images(root: str | Path, flag: str = "--data_path") -> ImageList:
    """List an image folder or an uncompressed tar of one; its `train` is taken where it exists.

    Raises a `UserError` if `root` is neither, or if it or a class folder holds nothing.
    """
    if not str(root):
        raise UserError(f"{flag}: not given, expected a folder of class folders")
    root = Path(root)
    if root.is_file():
        return _list_tar(root, flag)
    if (root / "train").is_dir():
        root = root / "train"
    return list_classes(root, IMAGE_SUFFIXES, flag, "images")


def _list_tar(path: Path, flag: str) -> ImageList:
    """List a tar as `list_classes` would list the folder that was packed."""
    with blame(f"{flag}: {path} is not a folder, so expected a tar of one: it"):
        places, folders = _tar_files(path)
    root = _packed_root(places, folders)
    below_root = {name[len(root) :] for name in folders if name.startswith(root)}
    files = {name: [] for name in below_root if name and "/" not in name}
    for name in places:
        class_name, slash, _ = name[len(root) :].partition("/")
        if name.startswith(root) and slash:
            files[class_name].append(name)
    names, labels, classes = _join(files, path, f"{path}: {root}", IMAGE_SUFFIXES, flag, "images")
    members = TarMembers(path, np.array([places[name] for name in names], dtype=np.int64))
    return ImageList(tuple(names), labels, classes, members)


def _packed_root(names: Mapping[str, object], folders: set[str]) -> str:
    """Return what stands before the class folders in a tar's names: "", or ends with /.

    A single folder on top is the one that was packed, if it holds `train` or no images of its own.
    """
    root = ""
    top = [name for name in folders if "/" not in name]
    if len(top) == 1 and top != ["train"]:
        holds_images = any(name.count("/") == 1 for name in names)
        root = f"{top[0]}/" if f"{top[0]}/train" in folders or not holds_images else ""
    return f"{root}train/" if f"{root}train" in folders else root


def list_classes(root: Path, suffixes: tuple[str, ...], flag: str, kind: str) -> ImageList:
    """List the files with one of `suffixes` below every sub-folder of `root`, hidden ones left out.

    The suffixes are in lower case, whatever the files' names are; `flag` and `kind` say in messages
    what named `root` and what the files are. Raises as `list_images`.
    """
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"{flag}: {root} {problem}, expected a folder of class folders")
    with blame(flag), os.scandir(root) as entries:
        folders = [one for one in entries if one.is_dir() and not one.name.startswith(".")]
        files = {one.name: list(_files_below(one.path, suffixes)) for one in folders}
    prefix = str(root / "_")[:-1]  # "" of ".", one slash of "/"
    names, labels, classes = _join(files, root, prefix, suffixes, flag, kind)
    return ImageList(tuple(map(Path, names)), labels, classes)


def _join(
    files: Mapping[str, list[str]],
    root: Path,
    prefix: str,
    suffixes: tuple[str, ...],
    flag: str,
    kind: str,
) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """Sort the files of all classes: names, labels (n,) int64 and classes; refuse what is empty."""
    if not files:
        raise UserError(f"{flag}: {root} holds no class folders, expected <class>/<{kind}>")
    classes = tuple(sorted(files))
    for name in classes:
        if not files[name]:
            raise UserError(
                f"{flag}: class folder {prefix}{name} holds no {kind}, expected at least one "
                f"({', '.join(suffixes)})"
            )
    labels = np.repeat(np.arange(len(classes)), [len(files[name]) for name in classes])
    return [file for name in classes for file in sorted(files[name])], labels, classes


def _files_below(folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yield paths as strings: at 1.28 M files pathlib's walk is several times slower."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(suffixes):
                yield entry.path
            elif entry.is_dir():
                yield from _files_below(entry.path, suffixes)


def image_batches(
    images: ImageList,
    image_size: int,
    batches: Sequence[np.ndarray],
    num_workers: int = 0,
    pin_memory: bool = False,
    skip_bad: bool = False,
) -> Iterator[ImageBatch]:
    """Decode and centre-crop the samples of every batch of indices, in order.

    Args:
        images: where the samples are.
        image_size: side of the crop, pixels.
        batches: integer sample indices of each batch.
        num_workers: processes that decode, at most one per core; 0 decodes in this one.
        pin_memory: return page-locked memory (ignored without a GPU).
        skip_bad: leave out files that cannot be decoded, with a warning each, instead of raising
            a `UserError`. A batch is then smaller, possibly empty.
    """
    loader = DataLoader(
        _Crops(images, image_size),  # type: ignore[arg-type]
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=min(num_workers, available_cores()),
        pin_memory=pin_memory and torch.cuda.is_available(),
        collate_fn=tuple,  # it is a batch already
        worker_init_fn=_ignore_stop_signals,
        # Its own generator: starting workers must not advance the global random stream.
        generator=torch.Generator(),
    )
    for batch, problems in loader:
        for problem in problems:
            if not skip_bad:
                raise UserError(problem)
            logger.warning("left out: %s", problem)
        yield batch


def _ignore_stop_signals(worker: int) -> None:
    """Leave a signal to a whole job to the process that trains: it needs its workers to finish."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _Crops:
    """Decodes batches for a `DataLoader`."""

    def __init__(self, images: ImageList, image_size: int) -> None:
        self._images, self._size = images, image_size

    def __getitems__(self, indices: np.ndarray) -> tuple[ImageBatch, list[str]]:
        """Return the batch of what can be read, and a message on each of the others."""
        pixels = torch.empty((len(indices), self._size, self._size, 3), dtype=torch.uint8)
        labels: list[int] = []
        problems: list[str] = []
        for index in indices:
            try:
                crop = center_crop(self._images.open(index), self._size)
            except UserError as error:  # out of a worker it would come wrapped in a traceback
                problems.append(str(error))
                continue
            pixels.numpy()[len(labels)] = np.asarray(crop)
            labels.append(int(self._images.labels[index]))
        pixels = pixels[: len(labels)].permute(0, 3, 1, 2)
        return ImageBatch(pixels, torch.tensor(labels, dtype=torch.int64)), problems
