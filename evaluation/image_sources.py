"""Images that scores are made of: a folder of files or a sample archive, read by all processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset.image_folder import ImageList, image_batches
from dataset.pictures import open_rgb
from util import distributed
from util.arrays import stream_npz
from util.cli import available_cores
from util.errors import UserError, blame
from util.files import open_file
from util.logs import progress

# The array of a sample archive.
SAMPLES = "arr_0"


@dataclass(frozen=True)
class ImageSource:
    """A set of images, read batch by batch."""

    path: Path  # the folder or file
    flag: str  # what named it, for messages
    image_size: int  # side S of the images, pixels
    count: int

    def __len__(self) -> int:
        return self.count

    def share(self, batch_size: int, num_workers: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Read this process's batches: every world-size-th of them.

        Yields:
            Places (B,) int64 among all images, and the images (B, S, S, 3) or (B, 3, S, S) uint8.

        Raises:
            UserError: an image cannot be read.
        """
        raise NotImplementedError

    def digest(self) -> str:
        """Hash all that is read, together with the other processes: sha256 (hex)."""
        raise NotImplementedError


@dataclass(frozen=True)
class FolderImages(ImageSource):
    """Image files; with `crop` they get the centre crop, without they must have `image_size`."""

    files: tuple[Path, ...]
    crop: bool

    def share(self, batch_size: int, num_workers: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        batches = share_of_batches(self.count, batch_size)
        if not self.crop:
            self._require_size([place for batch in batches for place in batch])
        images = ImageList(self.files, labels=np.zeros(self.count, dtype=np.int64), classes=("",))
        with blame(self.flag):
            loader = image_batches(images, self.image_size, batches, num_workers=num_workers)
            for places, batch in zip(batches, loader, strict=True):
                yield places, batch.images

    def _require_size(self, places: list[int]) -> None:
        """Refuse files of another size, which would be cropped."""

        def size(place: int) -> tuple[int, int] | None:
            try:
                with open_file(self.files[place]) as stream, Image.open(stream) as image:
                    return image.size
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                return None  # decoding it will say why

        side = self.image_size
        with ThreadPoolExecutor(available_cores()) as threads:
            for place, pixels in zip(places, threads.map(size, places), strict=True):
                if pixels not in (None, (side, side)):
                    raise UserError(
                        f"{self.flag}: {self.files[place]} has {pixels[0]} x {pixels[1]} pixels, "
                        f"expected {side} x {side}: square, all of one size"
                    )

    def digest(self) -> str:
        stride = distributed.world_size()
        mine = self.files[distributed.rank() :: stride]

        def work() -> list[bytes]:
            with blame(self.flag), ThreadPoolExecutor(available_cores()) as threads:
                digests = threads.map(_file_digest, mine)
                title = f"checksums of {self.path.name}"
                return list(progress(digests, total=len(mine), desc=title, unit="image"))

        parts = distributed.gather(distributed.fail_together(work))
        sha256 = hashlib.sha256()
        for place in range(self.count):
            sha256.update(parts[place % stride][place // stride])
        return sha256.hexdigest()


@dataclass(frozen=True)
class ArchiveImages(ImageSource):
    """The sample archive that ADM's evaluator reads."""

    def share(self, batch_size: int, num_workers: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        first, stride = distributed.rank(), distributed.world_size()
        with blame(f"{self.flag}: {self.path}"), stream_npz(self.path, SAMPLES) as images:
            for number, start in enumerate(range(0, self.count, batch_size)):
                # Those of the others are read as well: so each process compares the checksum.
                batch = images.read(batch_size)
                if number % stride == first:
                    yield np.arange(start, start + len(batch)), torch.from_numpy(batch.copy())

    def digest(self) -> str:
        def work() -> str:
            with blame(self.flag):
                return _file_digest(self.path).hex() if distributed.is_main() else ""

        return distributed.gather(distributed.fail_together(work))[0]


def open_images(path: str | Path, flag: str, image_size: int | None = None) -> ImageSource:
    """Find the images of a folder or a sample archive.

    Args:
        path: a folder of PNG and JPEG files at any depth, which torch-fidelity would find and in
            its order; or an .npz with `arr_0`, (n, S, S, 3) uint8, as ADM publishes them.
        flag: what named it, for messages.
        image_size: side that the images shall have, pixels: a folder's get the ADM centre crop
            (method section 8), an archive's must have it. None takes them as they are: square, and
            all of the first one's size.

    Raises:
        UserError: neither of them, or fewer than two images.
    """
    if str(path) and Path(path).is_dir():
        return _open_folder(Path(path), flag, image_size)
    if Path(path).is_file():
        return _open_archive(Path(path), flag, image_size)
    problem = f"{path} does not exist" if str(path) else "found ''"
    raise UserError(f"{flag}: {problem}, expected a folder of images or an .npz with {SAMPLES}")


def _open_folder(path: Path, flag: str, image_size: int | None) -> ImageSource:
    from evaluation import fidelity

    extensions = fidelity.DEFAULTS["samples_find_ext"]
    names = fidelity.glob_samples_paths(str(path), True, extensions, verbose=False)
    if len(names) < 2:
        raise UserError(
            f"{flag}: {path} holds {len(names)} images ({extensions}), expected at least 2"
        )
    files = tuple(map(Path, names))
    with blame(flag):
        size = image_size or open_rgb(files[0]).width
    return FolderImages(path, flag, size, len(files), files, crop=image_size is not None)


def _open_archive(path: Path, flag: str, image_size: int | None) -> ImageSource:
    side = "S" if image_size is None else image_size
    expected = f"expected an .npz with {SAMPLES}, uint8 of shape (n, {side}, {side}, 3), n > 1"
    try:
        with stream_npz(path, SAMPLES) as images:
            shape, dtype = images.shape, images.dtype
    except KeyError as error:
        raise UserError(f"{flag}: {path} holds no {SAMPLES}, {expected}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{flag}: {path} cannot be read ({error}), {expected}") from error
    size = image_size or (shape[1] if len(shape) == 4 else 0)
    usable = len(shape) == 4 and shape[0] > 1 and 0 < size <= 2**14
    if not usable or shape[1:] != (size, size, 3) or dtype != np.uint8:
        raise UserError(f"{flag}: {path}: {SAMPLES} is {dtype} of shape {shape}, {expected}")
    return ArchiveImages(path, flag, size, shape[0])


def share_of_batches(count: int, batch_size: int) -> list[np.ndarray]:
    """Places of this process's batches of `count` images: every world-size-th batch."""
    first, stride = distributed.rank() * batch_size, distributed.world_size() * batch_size
    return [
        np.arange(start, min(start + batch_size, count)) for start in range(first, count, stride)
    ]


def _file_digest(path: Path) -> bytes:
    sha256 = hashlib.sha256()
    with blame(str(path)), open_file(path) as file:
        while content := file.read(2**22):
            sha256.update(content)
    return sha256.digest()
