"""What one epoch sees: which samples in which order, and their tokens (method sections 3 and 8).

Everything random here is a function of (seed, epoch, sample index), so a batch is the same whatever
the number of processes and wherever a run was resumed.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from dataset.image_folder import ImageBatch, ImageList, image_batches
from dataset.token_cache import TokenCache
from orders.sources import training_orders
from util import distributed, streams
from util.errors import UserError
from util.geometry import TokenGrid

T = TypeVar("T")

Tensors = Generator[tuple[torch.Tensor, ...], None, None]


def send_ahead(
    arrays: Iterable[tuple[np.ndarray, ...]], device: torch.device, depth: int = 4
) -> Tensors:
    """Yield arrays as tensors on the device, made up to `depth` ahead by a background thread."""
    source = iter(arrays)

    def stage() -> tuple[torch.Tensor, ...]:
        tensors = tuple(map(torch.from_numpy, next(source, ())))
        if device.type != "cuda":
            return tensors
        with torch.cuda.device(device):  # a new thread would lock memory on behalf of GPU 0
            return tuple(tensor.pin_memory() for tensor in tensors)

    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="send_ahead")
    try:
        ahead = deque(worker.submit(stage) for _ in range(depth))
        while tensors := ahead.popleft().result():
            ahead.append(worker.submit(stage))
            yield tuple(tensor.to(device, non_blocking=True) for tensor in tensors)
    finally:
        worker.shutdown(cancel_futures=True)


class BadData:
    """The first error in the data of this process, until all processes stop together.

    One that stopped by itself would leave the others waiting for its gradients. So it takes part in
    the step with a substitute, and nothing is saved of that step.
    """

    def __init__(self) -> None:
        self.error: UserError | OSError | None = None

    def read(self, work: Callable[[], T], substitute: Callable[[], T]) -> T:
        """Return the result of `work`; from the first bad input on, of several, `substitute`'s."""
        if self.error is None:
            try:
                return work()
            except (UserError, OSError) as error:
                if distributed.world_size() == 1:
                    raise
                self.error = error
        return substitute()

    def check(self) -> None:
        """Raise a `UserError` on all processes if any has met bad data; all call it."""

        def tell() -> None:
            if self.error is not None:
                raise self.error

        distributed.fail_together(tell)


class Batch(NamedTuple):
    """This process's share of one optimiser step, on the training device."""

    tokens: torch.Tensor  # (B, N) int64, raster order
    labels: torch.Tensor  # (B,) int64
    orders: torch.Tensor  # (B, N) int64, a permutation of the positions per image
    label_drop: torch.Tensor  # (B,) bool, True where the class is dropped


class CachedTokens:
    """Tokens of a token cache."""

    def __init__(self, cache: TokenCache, device: torch.device) -> None:
        self.cache, self.device, self.bad_data = cache, device, BadData()
        self.num_samples, self.num_tokens = cache.num_images, cache.num_tokens

    def read(self, batches: np.ndarray, flipped: np.ndarray) -> Tensors:
        """Yield tokens (B, N) and labels (B,) of (steps, B) indices, mirrored or not; all int64."""

        def gather(indices: np.ndarray, flips: np.ndarray) -> np.ndarray:
            return self.bad_data.read(
                lambda: self.cache.read(indices, flips),
                lambda: np.zeros((len(indices), self.num_tokens), dtype=np.int64),
            )

        rows = zip(batches, flipped, strict=True)
        arrays = ((gather(*row), self.cache.labels[row[0]]) for row in rows)
        return send_ahead(arrays, self.device)


@dataclass
class EncodedImages:
    """Images decoded by worker processes and encoded on the fly."""

    images: ImageList
    encode: Callable[[torch.Tensor], torch.Tensor]  # (B, 3, S, S) uint8 -> (B, N) int64, on device
    grid: TokenGrid
    device: torch.device
    num_workers: int
    pin_memory: bool
    batch_size: int  # images encoded at a time
    bad_data: BadData = field(default_factory=BadData)

    def __post_init__(self) -> None:
        self.num_samples, self.num_tokens = len(self.images), self.grid.num_tokens

    def read(self, batches: np.ndarray, flipped: np.ndarray) -> Tensors:
        """Yield the same as `CachedTokens.read`."""
        count, size = batches.shape[1], self.grid.image_size
        loader = image_batches(self.images, size, list(batches), self.num_workers, self.pin_memory)
        blank = torch.zeros(count, 3, size, size, dtype=torch.uint8)
        substitute = ImageBatch(blank, torch.zeros(count, dtype=torch.int64))
        for flips in flipped:
            batch = self.bad_data.read(lambda: next(loader), lambda: substitute)
            images = batch.images.to(self.device, non_blocking=True)
            mirror = torch.from_numpy(flips).to(self.device)[:, None, None, None]
            # An accumulated batch fits into memory in parts only, here as in the step.
            parts = torch.where(mirror, images.flip(-1), images).split(self.batch_size)
            yield torch.cat([self.encode(part) for part in parts]), batch.labels.to(self.device)


TokenSource = CachedTokens | EncodedImages


def steps_per_epoch(num_samples: int, batch_size: int, world_size: int) -> int:
    """Count the global batches in an epoch, without the rest; a `ValueError` if there is none."""
    if num_samples < batch_size * world_size:
        raise ValueError(
            f"found {batch_size} on {world_size} processes, expected at most "
            f"{num_samples // world_size}: the data holds {num_samples} images"
        )
    return num_samples // (batch_size * world_size)


def epoch_batches(
    source: TokenSource,
    epoch: int,
    batch_size: int,
    *,
    seed: int,
    flip_prob: float,
    label_drop_prob: float,
    device: torch.device,
    order: str = "random",
    first_step: int = 0,
) -> Generator[Batch, None, None]:
    """Yield this process's batches of one epoch; the host makes the next ones during a step.

    A batch is what one process sees in a step. `flip_prob` and `label_drop_prob` are shares of
    visits that see the mirrored image, or no class; `order` is one of `TRAINING_ORDERS`.
    """
    batches = epoch_samples(source.num_samples, epoch, batch_size, seed)
    batches = batches[first_step:, distributed.rank()]
    flipped = _coins("flip", seed, epoch, batches, flip_prob)
    drawn = (
        (
            training_orders(order, source.num_tokens, seed, epoch, indices),
            _coins("label drop", seed, epoch, indices, label_drop_prob),
        )
        for indices in batches
    )
    with closing(source.read(batches, flipped)) as read, closing(send_ahead(drawn, device)) as sent:
        for parts in zip(read, sent, strict=True):
            yield Batch(*parts[0], *parts[1])


def epoch_samples(
    num_samples: int, epoch: int, batch_size: int, seed: int, purpose: str = "data order"
) -> np.ndarray:
    """Draw which samples each step sees: (steps, processes, batch_size) int64.

    A global batch is a stretch of the epoch's permutation of all samples; process r takes its
    r-th part. So another number of processes with the same global batch sees the same.
    """
    processes = distributed.world_size()
    steps = steps_per_epoch(num_samples, batch_size, processes)
    shuffled = streams.permutations(purpose, seed, epoch, count=num_samples)[0]
    return shuffled[: steps * batch_size * processes].reshape(steps, processes, batch_size)


def _coins(purpose: str, seed: int, epoch: int, indices: np.ndarray, share: float) -> np.ndarray:
    draws = streams.uniforms(purpose, seed, epoch, indices.ravel(), count=1)
    return draws.reshape(indices.shape) < share
