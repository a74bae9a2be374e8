"""Samples to PNG files, beside the work that makes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from util.cores import available_cores
from util.data.images import image_file, save_png
from util.scores.samples import SampleFolder

# Images that may wait for a thread; beyond that the maker of the images waits.
MAX_WAITING = 1024


class PngWriters:
    """Threads that write `{image id:05d}.png`; leaving the block waits for all files.

    Args:
        folder: where to; None writes nothing.

    Raises:
        OSError: a file cannot be written; raised by a later `write` or at the end of the block.
    """

    def __init__(self, folder: SampleFolder | None) -> None:
        self._folder = folder
        self._threads = ThreadPoolExecutor(available_cores())
        self._waiting: deque[Future[None]] = deque()

    def write(self, images: np.ndarray, image_ids: Sequence[int] | np.ndarray) -> None:
        """Hand over images (B, S, S, 3) uint8 with their ids (B,)."""
        if self._folder is None:
            return
        folder, made_by = self._folder.path, self._folder.made_by
        for image, image_id in zip(images, image_ids, strict=True):
            path = image_file(folder, image_id)
            self._waiting.append(self._threads.submit(save_png, image, path, made_by))
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft().result()

    def __enter__(self) -> PngWriters:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            for write in self._waiting:
                write.result()
