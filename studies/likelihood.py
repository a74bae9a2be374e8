"""What an order and its group sizes cost on given images: the exact likelihood, image by image.

Decoding a group in parallel puts a product in the place of its joint distribution. The price of
that is what the negative log-likelihood (NLL) rises by against the same orders one token at a time.
"""

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dataset.token_cache import TokenCache, check_cache
from hub import published
from hub.weights import read_weights
from models.likelihood import token_nll
from models.lpd import LPD
from orders.group_sizes import group_sizes, parse_group_sizes, training_group_sizes
from orders.order_file import warn_of_steps
from orders.plan import GenerationPlan
from orders.sources import OrderSource, parse_order
from util import distributed
from util.errors import blame
from util.geometry import TokenGrid
from util.logs import progress


@dataclass(frozen=True)
class Setting:
    """A kind of order with group sizes."""

    order: str  # as on the command line
    orders: OrderSource
    group_sizes: Sequence[int]  # K sizes that sum to N
    sizes_name: str = ""  # as on the command line; those of the table or rule have none

    @property
    def steps(self) -> int:
        return len(self.group_sizes)

    @property
    def title(self) -> str:
        return f"{self.order} {self.sizes_name}".strip()


def read_settings(args: argparse.Namespace, grid: TokenGrid, num_images: int) -> list[Setting]:
    """Combine each of `--orders` with all of `--steps` and `--group_sizes`, list by list."""
    with blame("--orders"):
        paths = [published.resolve(text, published.ORDERS) for text in args.orders]
        sources = [parse_order(path, grid, args.seed, num_images) for path in paths]
    with blame("--steps"):
        lists = [(group_sizes(grid.num_tokens, count), "") for count in args.steps or []]
    with blame("--group_sizes"):
        for text in args.group_sizes or []:
            lists.append((parse_group_sizes(text, grid.num_tokens), text))
    lists = lists or [(sizes, "") for sizes in training_group_sizes(grid.num_tokens)]
    for text in args.orders:
        warn_of_steps(text, [len(sizes) for sizes, _ in lists], "--orders", "--steps")
    return [
        Setting(order, source, sizes, name)
        for sizes, name in lists
        for order, source in zip(args.orders, sources, strict=True)
    ]


@dataclass(frozen=True)
class Estimate:
    """A mean over images and its standard error, numbers or arrays."""

    mean: float
    se: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Estimate":
        """Average values (n, ...) over n >= 2 images."""
        return cls(values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values)))

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.se:.2f}"


@dataclass(frozen=True)
class Measured:
    """A setting on n images, in nats."""

    setting: Setting
    by_step: np.ndarray  # (n, K) float64, NLL of each step's tokens
    price_by_step: np.ndarray | None  # less that of the same tokens one at a time, if measured

    @property
    def nll(self) -> np.ndarray:
        return self.by_step.sum(axis=1)

    @property
    def price(self) -> np.ndarray:
        return self.price_by_step.sum(axis=1)


def load_model(path: str, cache: TokenCache, bf16: bool) -> LPD:
    """Load the network of `--pretrained_ckpt`, for the cache's grid, in eval mode."""
    weights = read_weights(Path(path), "--pretrained_ckpt")
    config = {}
    if cache.grid is not None:
        config = {"img_size": cache.grid.image_size, "vqgan_stride": cache.grid.stride}
    model = LPD.from_weights(weights, f"--pretrained_ckpt: {path}", config)
    check_cache(cache, model.grid, model.tokenizer_fingerprint, model.class_num)
    if bf16:
        model.round_products()
    return model.requires_grad_(False)


def measure(
    model: LPD,
    cache: TokenCache,
    settings: Sequence[Setting],
    image_ids: np.ndarray,
    *,
    batch_size: int,
    one_by_one: bool = True,
) -> list[Measured]:
    """Measure each setting's NLL of images (n,), places in the cache that also name their orders.

    Every process takes its share; all return the same for any number of them. `one_by_one` also
    measures the same orders one token at a time. Honours an enclosing `torch.autocast`. Raises
    `UserError`, on all processes, where a file of the cache is damaged.
    """
    batches = np.split(image_ids, range(batch_size, len(image_ids), batch_size))
    mine = batches[distributed.rank() :: distributed.world_size()]

    def measure_share() -> list[list[np.ndarray]]:
        share = []
        with progress(total=sum(map(len, mine)) * len(settings), desc="NLL", unit="image") as bar:
            for ids in mine:
                share.append([])
                for nll in _batch_nll(model, cache, settings, ids, one_by_one):
                    share[-1].append(nll)
                    bar.update(len(ids))
        return share

    shares = distributed.gather(distributed.fail_together(measure_share))
    # Process r has batches r, r + world size, ...
    in_turn = [shares[i % len(shares)][i // len(shares)] for i in range(len(batches))]
    joined = [np.concatenate(parts) for parts in zip(*in_turn, strict=True)]
    return [
        Measured(setting, nll[:, 0], nll[:, 0] - nll[:, 1] if one_by_one else None)
        for setting, nll in zip(settings, joined, strict=True)
    ]


def _batch_nll(
    model: LPD, cache: TokenCache, settings: Sequence[Setting], ids: np.ndarray, one_by_one: bool
) -> Iterator[np.ndarray]:
    """Each setting's NLL by step, (B, 1 or 2, K): as decoded and, if asked for, one by one."""
    device = model.pos_embed.device
    tokens = torch.from_numpy(cache.read(ids, np.zeros(len(ids), dtype=bool))).to(device)
    labels = torch.from_numpy(cache.labels[ids]).to(device)
    num_tokens = tokens.shape[1]
    # Random and raster orders are the same at every step count, and so then is one by one.
    measured: dict[tuple[bytes, tuple[int, ...]], np.ndarray] = {}
    for setting in settings:
        orders = setting.orders(ids, setting.group_sizes)
        lists = [tuple(setting.group_sizes), (1,) * num_tokens][: 1 + one_by_one]
        keys = [(orders.tobytes(), sizes) for sizes in lists]
        for key in keys:
            if key not in measured:
                plan = GenerationPlan.build(orders, key[1], num_tokens)
                nll = token_nll(model, tokens, labels, plan)
                measured[key] = nll.cpu().numpy().astype(np.float64)
        starts = np.cumsum((0, *setting.group_sizes[:-1]))
        yield np.add.reduceat(np.stack([measured[key] for key in keys], axis=1), starts, axis=2)


def images_digest(cache: TokenCache, image_ids: np.ndarray) -> str:
    """Say which images (n,) of the cache these are: sha256 (hex) of labels and tokens."""
    digest = hashlib.sha256(cache.labels[image_ids].astype(np.int64))
    for ids in np.split(image_ids, range(1024, len(image_ids), 1024)):
        digest.update(cache.read(ids, np.zeros(len(ids), dtype=bool)).astype(np.int64))
    return digest.hexdigest()
