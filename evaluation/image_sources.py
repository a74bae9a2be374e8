"""Images that scores are made of: a folder of files or a sample archive, read by all processes."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset.image_folder import ImageList, image_batches
from dataset.pictures import open_rgb
from hub.download import sha256_of
from util import distributed
from util.arrays import stream_npz
from util.cli import available_cores
from util.errors import UserError, blame
from util.logs import progress

# The array of a sample archive.
SAMPLES = "arr_0"


@dataclass(frozen=True)
class ImageSource:
    """A set of images, read batch by batch."""

    path: Path  # the folder, or the archive that ADM's evaluator reads
    flag: str  # what named it, for messages
    image_size: int  # side S of the images, pixels
    count: int
    files: tuple[Path, ...]  # of the folder; the archive alone
    crop: bool = False  # a folder's images get the centre crop; else they must have `image_size`

    def __len__(self) -> int:
        return self.count

    def share(self, batch_size: int, num_workers: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Read every world-size-th batch: places (B,) int64 among all images, and the images.

        They are (B, S, S, 3) or (B, 3, S, S) uint8. A `UserError` names one that cannot be read.
        """
        batches = share_of_batches(self.count, batch_size)
        if self.files == (self.path,):
            mine = {places[0]: places for places in batches}
            with blame(f"{self.flag}: {self.path}"), stream_npz(self.path, SAMPLES) as archive:
                for start in range(0, self.count, batch_size):
                    # Those of the others are read as well: so each process compares the checksum.
                    batch = archive.read(batch_size)
                    if start in mine:
                        yield mine[start], torch.from_numpy(batch.copy())
            return
        side, labels = None if self.crop else self.image_size, np.zeros(self.count, dtype=np.int64)
        images = _SquareImages(self.files, labels, ("",), side=side)
        with blame(self.flag):
            loader = image_batches(images, self.image_size, batches, num_workers=num_workers)
            for places, batch in zip(batches, loader, strict=True):
                yield places, batch.images

    def digest(self) -> str:
        """Hash the files' bytes: sha256 (hex). All processes call it: each reads its share."""

        def digest_of(file: Path) -> str:
            with blame(f"{self.flag}: {file}"):
                return sha256_of(file)

        mine = self.files[distributed.rank() :: distributed.world_size()]
        title = f"checksums of {self.path.name}"
        with ThreadPoolExecutor(available_cores()) as threads:
            hashes = threads.map(digest_of, mine)
            hashes = progress(hashes, total=len(mine), desc=title, unit="file")
            shares = distributed.gather(distributed.fail_together(lambda: list(hashes)))
        in_order = chain.from_iterable(zip_longest(*shares, fillvalue=""))
        return hashlib.sha256("".join(in_order).encode()).hexdigest()


@dataclass(frozen=True)
class _SquareImages(ImageList):
    """Refuses files of another size than `side`, which would be cropped; None takes all."""

    side: int | None = None

    def open(self, index: int) -> Image.Image:
        image = super().open(index)
        if self.side is not None and image.size != (self.side, self.side):
            raise UserError(
                f"{self.paths[index]} has {image.width} x {image.height} pixels, expected "
                f"{self.side} x {self.side}: square, all of one size"
            )
        return image


def open_images(path: str | Path, flag: str, image_size: int | None = None) -> ImageSource:
    """Find the images of a folder or a sample archive, which `flag` named; at least two.

    A folder's are PNG and JPEG files at any depth, as torch-fidelity finds and sorts them; an .npz
    has `arr_0`, (n, S, S, 3) uint8, as ADM's. With `image_size`, pixels, a folder's get the ADM
    centre crop (method section 8) and an archive's must have it; else all have the first one's.
    """
    found, path = str(path), Path(path)
    if path.is_file():
        return _open_archive(path, flag, image_size)
    if not found or not path.is_dir():
        problem = f"{path} does not exist" if found else "found ''"
        raise UserError(f"{flag}: {problem}, expected a folder of images or an .npz with {SAMPLES}")
    from evaluation import fidelity

    extensions = fidelity.DEFAULTS["samples_find_ext"]
    names = fidelity.glob_samples_paths(str(path), True, extensions, verbose=False)
    if len(names) < 2:
        found = f"{path} holds {len(names)} images ({extensions})"
        raise UserError(f"{flag}: {found}, expected at least 2")
    with blame(flag):
        size = image_size or open_rgb(names[0]).width
    files = tuple(map(Path, names))
    return ImageSource(path, flag, size, len(files), files, crop=image_size is not None)


def _open_archive(path: Path, flag: str, image_size: int | None) -> ImageSource:
    side = image_size or "S"
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
    return ImageSource(path, flag, size, shape[0], (path,))


def share_of_batches(count: int, batch_size: int) -> list[np.ndarray]:
    """Places of this process's batches of `count` images: every world-size-th batch."""
    first, stride = distributed.rank() * batch_size, distributed.world_size() * batch_size
    starts = range(first, count, stride)
    return [np.arange(start, min(start + batch_size, count)) for start in starts]
