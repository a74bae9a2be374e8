"""What an order and its group sizes cost on given images: the exact likelihood, image by image.

Decoding a group in parallel puts a product in the place of its joint distribution. The price of
that is what the negative log-likelihood (NLL) rises by against the same orders one token at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dataset.token_cache import TokenCache
from models.likelihood import token_nll
from models.lpd import LPD
from orders.plan import GenerationPlan
from orders.sources import OrderSource
from util import distributed
from util.logs import progress

_HASHED_TOGETHER = 1024


@dataclass(frozen=True)
class Setting:
    """A kind of order with group sizes.

    Attributes:
        order: as on the command line.
        orders: makes them.
        group_sizes: K sizes that sum to N.
        sizes_name: what the sizes are, in a word: the table or rule has none.
    """

    order: str
    orders: OrderSource
    group_sizes: tuple[int, ...]
    sizes_name: str = ""

    @property
    def steps(self) -> int:
        """Decoding steps, K."""
        return len(self.group_sizes)


@dataclass(frozen=True)
class Estimate:
    """A mean over images and its standard error."""

    mean: float
    se: float

    @classmethod
    def of(cls, values: np.ndarray) -> Estimate:
        """Of (n,) values, n at least 2."""
        return cls(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.se:.2f}"


@dataclass(frozen=True)
class Measured:
    """A setting on n images.

    Attributes:
        setting: orders and group sizes.
        by_step: (n, K) float64, NLL of each step's tokens, nats.
        one_by_one: the same tokens if they came one at a time in the same orders; None if that was
            not measured.
    """

    setting: Setting
    by_step: np.ndarray
    one_by_one: np.ndarray | None

    @property
    def nll(self) -> np.ndarray:
        """(n,) nats an image."""
        return self.by_step.sum(axis=1)

    @property
    def price_by_step(self) -> np.ndarray:
        """(n, K): how much more than one by one, nats."""
        return self.by_step - self.one_by_one


def measure(
    model: LPD,
    cache: TokenCache,
    settings: Sequence[Setting],
    image_ids: np.ndarray,
    *,
    batch_size: int,
    bf16: bool = False,
    one_by_one: bool = True,
) -> list[Measured]:
    """Each setting's NLL of each image; every process takes its share of the images.

    Args:
        model: the network, on the device to be used.
        cache: holds the tokens.
        settings: what to compare, all on the same images.
        image_ids: (n,) places in the cache, which also name the images' orders.
        batch_size: images at a time.
        bf16: matrix products in bfloat16.
        one_by_one: also measure the same orders one token at a time.

    Returns:
        One for each setting, in this order, on every process; the images as in `image_ids`. The
        numbers do not depend on how many processes there are.

    Raises:
        UserError: a file of the cache is damaged, on all processes.
    """
    share = distributed.fail_together(
        lambda: _measure_share(model, cache, settings, image_ids, batch_size, bf16, one_by_one)
    )
    shares = distributed.gather(share)
    # Process r has batches r, r + world size, ...
    batches = -(-len(image_ids) // batch_size)
    in_turn = [shares[batch % len(shares)][batch // len(shares)] for batch in range(batches)]
    joined = [np.concatenate(parts) for parts in zip(*in_turn, strict=True)]
    return [
        Measured(setting, found[:, 0], found[:, 1] if one_by_one else None)
        for setting, found in zip(settings, joined, strict=True)
    ]


def images_digest(cache: TokenCache, image_ids: np.ndarray) -> str:
    """Which images these are: sha256 (hex) over their labels and tokens, (n,) places in the cache.

    Raises:
        UserError: a file of the cache is damaged.
    """
    digest = hashlib.sha256(cache.labels[image_ids].astype(np.int64))
    for start in range(0, len(image_ids), _HASHED_TOGETHER):
        ids = image_ids[start : start + _HASHED_TOGETHER]
        digest.update(cache.read(ids, np.zeros(len(ids), dtype=bool)).astype(np.int64))
    return digest.hexdigest()


def _measure_share(
    model: LPD,
    cache: TokenCache,
    settings: Sequence[Setting],
    image_ids: np.ndarray,
    batch_size: int,
    bf16: bool,
    one_by_one: bool,
) -> list[list[np.ndarray]]:
    """This process's batches: for each the settings' (B, 1 or 2, K) NLL by step."""
    batches = list(_batches(image_ids, batch_size))
    total = sum(map(len, batches)) * len(settings)
    found = []
    with progress(total=total, desc="NLL", unit="image") as bar:
        for ids in batches:
            batch = _BatchNLL(model, cache, ids, bf16)
            by_setting = []
            for setting in settings:
                by_setting.append(batch.by_step(setting, one_by_one))
                bar.update(len(ids))
            found.append(by_setting)
    return found


def _batches(image_ids: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """This process's batches; who takes a batch has no influence on what is in it."""
    first, stride = distributed.rank() * size, distributed.world_size() * size
    for start in range(first, len(image_ids), stride):
        yield image_ids[start : start + size]


class _BatchNLL:
    """The images of one batch, and what is known of them already."""

    def __init__(self, model: LPD, cache: TokenCache, ids: np.ndarray, bf16: bool) -> None:
        device = model.pos_embed.device
        self._model, self._ids, self._bf16 = model, ids, bf16
        not_mirrored = np.zeros(len(ids), dtype=bool)
        self._tokens = torch.from_numpy(cache.read(ids, not_mirrored)).to(device)
        self._labels = torch.from_numpy(cache.labels[ids]).to(device)
        # Random and raster orders are the same at every step count, and so then is one by one.
        self._known: dict[tuple[bytes, tuple[int, ...]], np.ndarray] = {}

    def by_step(self, setting: Setting, one_by_one: bool) -> np.ndarray:
        """(B, 1 or 2, K) float64: as decoded and, if asked for, one by one."""
        orders = setting.orders(self._ids, setting.group_sizes)
        lists = [setting.group_sizes]
        if one_by_one:
            lists.append((1,) * self._tokens.shape[1])
        starts = np.cumsum((0, *setting.group_sizes[:-1]))
        tokens = np.stack([self._token_nll(orders, sizes) for sizes in lists], axis=1)
        return np.add.reduceat(tokens, starts, axis=2)

    def _token_nll(self, orders: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
        key = orders.tobytes(), sizes
        if key not in self._known:
            plan = GenerationPlan.build(orders, sizes, self._tokens.shape[1])
            device = self._tokens.device.type
            with torch.autocast(device, dtype=torch.bfloat16, enabled=self._bf16):
                found = token_nll(self._model, self._tokens, self._labels, plan)
            self._known[key] = found.cpu().numpy().astype(np.float64)
        return self._known[key]
