"""The kinds of generation order that a study of orders compares, and the shapes of group sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hub.published import ORDERS, resolve
from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders, published_repulsion, random_orders
from orders.order_file import read_orders
from util.geometry import TokenGrid

# The group sizes of the published table or cosine rule; other shapes are powers.
RULE = "rule"


@dataclass(frozen=True)
class OrderKind:
    """One way to order the positions of any image.

    Attributes:
        name: as on the command line.
        make: image ids (B,) and group sizes -> orders (B, N) int64. A row depends on its own id,
            the seed and the sizes only.
    """

    name: str
    make: Callable[[np.ndarray, Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Setting:
    """An order kind with group sizes.

    Attributes:
        kind: of order.
        group_sizes: K sizes that sum to N.
        sizes_name: what the sizes are, in a word: the table or rule has none.
    """

    kind: OrderKind
    group_sizes: tuple[int, ...]
    sizes_name: str = ""

    @property
    def steps(self) -> int:
        """Decoding steps, K."""
        return len(self.group_sizes)


def parse_order_kind(text: str, grid: TokenGrid, seed: int, num_images: int) -> OrderKind:
    """An order kind as users write it.

    Args:
        text: `random`, `raster`, `lpd` (locality-aware, with the published repulsion threshold of
            the grid and step count, else 1), `lpd:R` or `lpd:R:P` with repulsion threshold R and
            proximity threshold P (1 if not given), or the path or published name of an order
            file, whose row i is the order of image i.
        grid: of the images.
        seed: names the random streams.
        num_images: images from 0 that an order file has to serve.

    Raises:
        ValueError: something else, or an order file that does not serve.
        OSError: an order file cannot be read.
    """
    if text == "raster":
        return OrderKind(text, lambda ids, _: np.tile(np.arange(grid.num_tokens), (len(ids), 1)))
    if text == "random":
        return OrderKind(
            text, lambda ids, _: random_orders(len(ids), grid.num_tokens, seed, image_ids=ids)
        )
    if text == "lpd":
        return locality_kind(text, grid, seed)
    if text.startswith("lpd:"):
        return locality_kind(text, grid, seed, *_thresholds(text))
    path = resolve(text, ORDERS)
    if Path(path).suffix not in (".json", ".npy"):
        raise ValueError(
            f"found {text!r}, expected random, raster, lpd, lpd:R, lpd:R:P or an order file "
            "(.json, .npy, or a published name)"
        )
    orders = read_orders(path, grid.num_tokens)
    if len(orders) < num_images:
        raise ValueError(
            f"{text} holds {len(orders)} orders, expected one for each of {num_images} images"
        )
    return OrderKind(text, lambda ids, _: orders[ids].astype(np.int64))


def locality_kind(
    name: str,
    grid: TokenGrid,
    seed: int,
    repulsion: float | None = None,
    proximity: float = 1.0,
) -> OrderKind:
    """Locality-aware orders; without `repulsion` at the published threshold of the step count."""

    def make(ids: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
        threshold = repulsion
        if threshold is None:
            threshold = published_repulsion(grid.num_tokens, len(sizes))
        return locality_aware_orders(
            len(ids), sizes, grid.side, proximity, threshold, seed, image_ids=ids
        )

    return OrderKind(name, make)


def _thresholds(text: str) -> list[float]:
    """R, or R and P, of `lpd:R:P`."""
    try:
        found = [float(part) for part in text.split(":")[1:]]
    except ValueError:
        found = []
    if not 1 <= len(found) <= 2 or not all(0 <= value < np.inf for value in found):
        raise ValueError(
            f"found {text!r}, expected lpd:R or lpd:R:P with finite numbers of at least 0"
        )
    return found


def shaped_group_sizes(num_tokens: int, steps: int, shape: str) -> list[int]:
    """Group sizes of a shape: 1 first, then growing as the shape says.

    Args:
        num_tokens: N.
        steps: K.
        shape: `rule` for the published table or cosine rule, or a positive number a, for which
            about 1 + (N - 1) * (k / (K - 1)) ** a tokens are known after step k + 1: 1 for equal
            groups, 2 for groups that grow in proportion to their number.

    Raises:
        ValueError: no such shape, or no split into so many steps.
    """
    if shape == RULE:
        return group_sizes(num_tokens, steps)
    try:
        power = float(shape)
    except ValueError:
        power = 0.0
    if not 0 < power < np.inf:
        raise ValueError(f"found shape {shape!r}, expected {RULE} or a positive number")
    if not 2 <= steps <= num_tokens:
        raise ValueError(f"found {steps} steps, expected 2 to {num_tokens} for {num_tokens} tokens")
    step = np.arange(steps)
    known = np.rint(1 + (num_tokens - 1) * (step / (steps - 1)) ** power).astype(np.int64)
    # At least one token a step, now and in all steps to come.
    known = np.maximum.accumulate(known - step) + step
    known = np.minimum(known, num_tokens - step[::-1])
    return np.diff(known, prepend=0).tolist()
