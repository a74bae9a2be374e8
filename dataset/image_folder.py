"""Image folders, `<root>/<class>/**/<image>`, or tars of them: listed fast, read in batches."""

import logging
import os
import signal
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple

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

# What is listed, by its name in messages; in lower case, whatever the files' names are.
SUFFIXES = {
    "images": tuple(".bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split()),
    "token files": (".npz",),
}
# Paths class by class, sorted inside a class; labels (n,) int64; names of the classes, sorted.
Listing = tuple[tuple[str, ...], np.ndarray, tuple[str, ...]]


@dataclass(frozen=True)
class ImageList:
    """The images of a data set in the order of a `Listing`; other sources replace `open`."""

    paths: Sequence[str | Path]
    labels: np.ndarray  # (n,) int64, indices into `classes`
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> Image.Image:
        """Decode an image to RGB; raises a `UserError` that names it."""
        return open_rgb(self.paths[index])


@dataclass(frozen=True)
class TarredImages(ImageList):
    """Images that are members of a tar; `paths` are their names there."""

    tar: Path
    places: np.ndarray  # (n, 2) int64: offset and size in the tar, bytes

    def open(self, index: int) -> Image.Image:
        name, (offset, size) = f"{self.tar}: {self.paths[index]}", self.places[index].tolist()
        with blame(name), self.tar.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        return open_rgb(BytesIO(content), name)


class ImageBatch(NamedTuple):
    """Decoded and cropped images."""

    images: torch.Tensor  # (B, 3, S, S) uint8, channels last in memory
    labels: torch.Tensor  # (B,) int64


def list_images(root: str | Path, flag: str = "--data_path") -> ImageList:
    """List an image folder or a tar of one, its `train` where there is one, or raise UserError."""
    if not str(root):
        raise UserError(f"{flag}: not given, expected a folder of class folders")
    root = Path(root)
    if root.is_file():
        return _list_tar(root, flag)
    if (root / "train").is_dir():
        root = root / "train"
    return ImageList(*list_classes(root, "images", flag))


def list_classes(root: Path, kind: str, flag: str) -> Listing:
    """List files of a kind of `SUFFIXES` below all sub-folders of `root`, which `flag` named."""
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"{flag}: {root} {problem}, expected a folder of class folders")
    with blame(flag), os.scandir(root) as entries:
        folders = [one for one in entries if one.is_dir() and not one.name.startswith(".")]
        files = {one.name: list(_files_below(one.path, SUFFIXES[kind])) for one in folders}
    paths, labels, classes = _join(files, root, kind, flag)
    return tuple(map(Path, paths)), labels, classes


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


def _join(files: Mapping[str, list[str]], root: Path, kind: str, flag: str) -> Listing:
    """Sort the files of all classes of `root`; a `UserError` says what holds none."""
    if not files:
        raise UserError(f"{flag}: {root} holds no class folders, expected <class>/<{kind}>")
    classes = tuple(sorted(files))
    for name in classes:
        if not files[name]:
            raise UserError(
                f"{flag}: class folder {root / name} holds no {kind}, expected at least one "
                f"({', '.join(SUFFIXES[kind])})"
            )
    labels = np.repeat(np.arange(len(classes)), [len(files[name]) for name in classes])
    return tuple(file for name in classes for file in sorted(files[name])), labels, classes


def _list_tar(path: Path, flag: str) -> TarredImages:
    """List a tar as the folder that was packed would be listed."""
    places: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    with blame(f"{flag}: {path} is not a folder, so expected an uncompressed tar of one"):
        for name, member in _tar_members(path):
            if member.isdir():
                folders.add(name)
            elif name.lower().endswith(SUFFIXES["images"]):
                if member.issparse() or not member.isreg():
                    raise ValueError(f"{name} is a link or a special file, expected plain ones")
                places[name] = (member.offset_data, member.size)  # the last of a name counts
                folders.add(name.rpartition("/")[0])
    # A tar need not hold the folders above its members.
    folders |= {str(above) for folder in folders for above in PurePosixPath(folder).parents}
    folders -= {"", "."}
    root = ""  # what stands before the class folders, with a slash
    top = [folder for folder in folders if "/" not in folder]
    if len(top) == 1 and top != ["train"]:
        # That folder was packed if it holds `train` or no images of its own; else it is a class.
        holds_images = any(name.count("/") == 1 for name in places)
        root = f"{top[0]}/" if f"{top[0]}/train" in folders or not holds_images else ""
    root = f"{root}train/" if f"{root}train" in folders else root
    below_root = (name.removeprefix(root) for name in folders if name.startswith(root))
    files = {name: [] for name in below_root if "/" not in name}
    for name in places:
        class_name, slash, _ = name.removeprefix(root).partition("/")
        if name.startswith(root) and slash:
            files[class_name].append(name)
    names, labels, classes = _join(files, path / root, "images", flag)
    members = np.array([places[name] for name in names], dtype=np.int64)
    return TarredImages(names, labels, classes, path, members)


def _tar_members(path: Path) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield name and header of what an uncompressed tar holds, hidden members left out."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in progress(iter(tar.next, None), desc=f"list {path.name}", unit="file"):
                tar.members = []  # it would keep a kilobyte for each of a million
                parts = [part for part in member.name.split("/") if part not in ("", ".")]
                if not any(part.startswith(".") for part in parts):
                    yield "/".join(parts), member
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(f"it cannot be read ({error})") from error
    # tarfile takes whatever is no header for the end, which zeros mark.
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(tarfile.BLOCKSIZE)
        cut_short = len(rest) < tarfile.BLOCKSIZE
        while rest and not any(rest):
            rest = file.read(2**20)
    if cut_short or rest:
        raise ValueError(f"it is cut short, damaged or several in a row at byte {end}")


def image_batches(
    images: ImageList,
    image_size: int,
    batches: Sequence[np.ndarray],
    num_workers: int = 0,
    pin_memory: bool = False,
    skip_bad: bool = False,
) -> Iterator[ImageBatch]:
    """Decode and centre-crop the samples of every batch of indices, in order.

    Up to `num_workers` processes decode, at most one per core; 0 decodes in this one. `pin_memory`
    is ignored without a GPU. With `skip_bad`, files that cannot be decoded are left out, with a
    warning each, so a batch may be smaller, or empty; else the first is a `UserError`.
    """
    loader = DataLoader(
        range(len(images)),  # type: ignore[arg-type]
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=min(num_workers, available_cores()),
        pin_memory=pin_memory and torch.cuda.is_available(),
        collate_fn=partial(_crop, images, image_size),
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


def _crop(images: ImageList, image_size: int, indices: list[int]) -> tuple[ImageBatch, list[str]]:
    """Make a batch of the images that can be read, and a message on each of the others."""
    pixels = torch.empty((len(indices), image_size, image_size, 3), dtype=torch.uint8)
    labels: list[int] = []
    problems: list[str] = []
    for index in indices:
        try:
            crop = center_crop(images.open(index), image_size)
        except UserError as error:  # out of a worker it would come wrapped in a traceback
            problems.append(str(error))
            continue
        pixels.numpy()[len(labels)] = np.asarray(crop)
        labels.append(int(images.labels[index]))
    pixels = pixels[: len(labels)].permute(0, 3, 1, 2)
    return ImageBatch(pixels, torch.tensor(labels, dtype=torch.int64)), problems
