"""Image folders: `<root>/<class>/**/<image>`, listed fast and read in batches."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from util.cores import available_cores
from util.errors import UserError, describe_os_error
from util.images import center_crop, open_rgb

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
)


@dataclass(frozen=True)
class ImageList:
    """The files of an image folder.

    Attributes:
        paths: (n) files, class by class, sorted by path inside a class.
        labels: (n,) int64 class index of each file.
        classes: class names, sorted; a label is an index into them.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


class ImageBatch(NamedTuple):
    """Decoded and cropped images.

    Attributes:
        images: (B, 3, S, S) uint8.
        labels: (B,) int64.
        indices: (B,) int64, the samples' places in the `ImageList`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


def list_images(root: str | Path, flag: str = "--data_path") -> ImageList:
    """List an image folder; `<root>/train` is taken where it exists.

    Raises:
        UserError: `root` is missing or no folder, holds no class folders, or one of them is empty.
    """
    if not str(root):
        raise UserError(f"{flag}: not given, expected a folder of class folders")
    root = Path(root)
    if (root / "train").is_dir():
        root = root / "train"
    return list_classes(root, IMAGE_SUFFIXES, flag, "images")


def list_classes(root: Path, suffixes: Collection[str], flag: str, kind: str) -> ImageList:
    """List the files with one of `suffixes` (lower case) below every sub-folder of `root`.

    Hidden files and folders are passed over.

    Args:
        root: the folder whose sub-folders are the classes.
        suffixes: file name endings that count, with the dot; letter case does not matter.
        flag: the flag that named `root`, for messages.
        kind: what the files are, for messages.

    Raises:
        UserError: as for `list_images`.
    """
    if not root.is_dir():
        found = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"{flag}: {root} {found}, expected a folder of class folders")
    names: list[str] = []
    counts: list[int] = []
    classes: list[str] = []
    try:
        with os.scandir(root) as entries:
            classes = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        for name in classes:
            found_files = sorted(_files_below(os.path.join(root, name), tuple(suffixes)))  # noqa: PTH118
            if not found_files:
                raise UserError(
                    f"{flag}: class folder {root / name} holds no {kind}, expected at least one "
                    f"({', '.join(sorted(suffixes))})"
                )
            names += found_files
            counts.append(len(found_files))
    except OSError as error:
        raise UserError(f"{flag}: {describe_os_error(error)}") from error
    if not classes:
        raise UserError(f"{flag}: {root} holds no class folders, expected <class>/<{kind}>")
    return ImageList(
        paths=tuple(map(Path, names)),
        labels=np.repeat(np.arange(len(classes), dtype=np.int64), counts),
        classes=tuple(classes),
    )


def _files_below(folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Paths below `folder`, as strings: at 1.28 M files pathlib's walk is several times slower."""
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
    """Decode and centre-crop the samples of every batch, in order.

    Args:
        images: where the samples are.
        image_size: side of the crop, pixels.
        batches: integer sample indices of each batch.
        num_workers: processes that decode, at most one per core; 0 decodes in this one.
        pin_memory: return page-locked memory (ignored without a GPU).
        skip_bad: leave files that cannot be decoded out, with a warning each. A batch is then
            smaller, possibly empty.

    Yields:
        one `ImageBatch` for each of `batches`.

    Raises:
        UserError: a file cannot be decoded (without `skip_bad`); the message names it.
    """
    samples = _Samples(images, image_size)
    loader = DataLoader(
        samples,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=min(num_workers, available_cores()),
        pin_memory=pin_memory and torch.cuda.is_available(),
        collate_fn=samples.collate,
        # Its own generator: starting workers must not advance the global random stream.
        generator=torch.Generator(),
    )
    for batch, problems in loader:
        for problem in problems:
            if not skip_bad:
                raise UserError(problem)
            logger.warning("left out: %s", problem)
        yield batch


class _Samples(Dataset):
    """Sample index -> (crop (3, S, S) uint8, label, index), or a message if it is unreadable."""

    def __init__(self, images: ImageList, image_size: int) -> None:
        self.images = images
        self.image_size = image_size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int] | str:
        try:
            crop = center_crop(open_rgb(self.images.paths[index]), self.image_size)
        except UserError as error:
            # Raised in a worker it would come out wrapped in a traceback: see image_batches.
            return str(error)
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
        return pixels, int(self.images.labels[index]), int(index)

    def collate(
        self, samples: list[tuple[torch.Tensor, int, int] | str]
    ) -> tuple[ImageBatch, list[str]]:
        """Stack what could be read; the messages of the rest travel beside it."""
        problems = [sample for sample in samples if isinstance(sample, str)]
        good = [sample for sample in samples if not isinstance(sample, str)]
        pixels = torch.empty((len(good), 3, self.image_size, self.image_size), dtype=torch.uint8)
        for i, (image, _, _) in enumerate(good):
            pixels[i] = image
        labels = torch.tensor([label for _, label, _ in good], dtype=torch.int64)
        indices = torch.tensor([index for _, _, index in good], dtype=torch.int64)
        return ImageBatch(pixels, labels, indices), problems
