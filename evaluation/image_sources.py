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
from hub.download import sha256_of
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

    path: Path  # the folder, or the archive that ADM's evaluator reads
    flag: str  # what named it, for messages
    image_size: int  # side S of the images, pixels
    count: int
    files: tuple[Path, ...]  # of the folder; the archive alone
    crop: bool = False  # a folder's images get the centre crop; else they must have `image_size`

    def __len__(self) -> int:
        return self.count

    @property
    def _is_archive(self) -> bool:
        return self.files == (self.path,)

    def share(self, batch_size: int, num_workers: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Read every world-size-th batch: places (B,) int64 among all images, and the images.

        They are (B, S, S, 3) or (B, 3, S, S) uint8. A `UserError` names one that cannot be read.
        """
        batches = share_of_batches(self.count, batch_size)
        if self._is_archive:
            yield from self._share_of_archive(batches, batch_size)
            return
        if not self.crop:
            self._require_size([place for batch in batches for place in batch])
        images = ImageList(self.files, labels=np.zeros(self.count, dtype=np.int64), classes=("",))
        with blame(self.flag):
            loader = image_batches(images, self.image_size, batches, num_workers=num_workers)
            for places, batch in zip(batches, loader, strict=True):
                yield places, batch.images

    def _share_of_archive(
        self, batches: list[np.ndarray], batch_size: int
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        mine = {places[0]: places for places in batches}
        with blame(f"{self.flag}: {self.path}"), stream_npz(self.path, SAMPLES) as images:
            for start in range(0, self.count, batch_size):
                # Those of the others are read as well: so each process compares the checksum.
                batch = images.read(batch_size)
                if start in mine:
                    yield mine[start], torch.from_numpy(batch.copy())

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
        """Hash all that is read, together with the other processes: sha256 (hex)."""
        stride = distributed.world_size()
        mine = self.files[distributed.rank() :: stride]

        def digest_of(path: Path) -> str:
            with blame(f"{self.flag}: {path}"):
                return sha256_of(path)

        def work() -> list[str]:
            title = f"checksums of {self.path.name}"
            with ThreadPoolExecutor(available_cores()) as threads:
                digests = threads.map(digest_of, mine)
                return list(progress(digests, total=len(mine), desc=title, unit="file"))

        parts = distributed.gather(distributed.fail_together(work))
        digests = [parts[place % stride][place // stride] for place in range(len(self.files))]
        if self._is_archive:
            return digests[0]
        return hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest()


def open_images(path: str | Path, flag: str, image_size: int | None = None) -> ImageSource:
    """Find the images of a folder or a sample archive, which `flag` named; at least two.

    A folder's are PNG and JPEG files at any depth, as torch-fidelity finds and sorts them; an .npz
    has `arr_0`, (n, S, S, 3) uint8, as ADM's. With `image_size`, pixels, a folder's get the ADM
    centre crop (method section 8) and an archive's must have it; else all have the first one's.
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
    return ImageSource(path, flag, size, len(files), files, crop=image_size is not None)


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
    return ImageSource(path, flag, size, shape[0], (path,))


def share_of_batches(count: int, batch_size: int) -> list[np.ndarray]:
    """Places of this process's batches of `count` images: every world-size-th batch."""
    first, stride = distributed.rank() * batch_size, distributed.world_size() * batch_size
    return [
        np.arange(start, min(start + batch_size, count)) for start in range(first, count, stride)
    ]
