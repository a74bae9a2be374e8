"""Locality-aware generation orders, many at once (method section 6; paper section 3.3)."""

import math
from collections.abc import Sequence

import numpy as np

from orders.group_sizes import validate_group_sizes
from util import streams

MAX_GRID_SIZE = 2048


def check_grid_size(grid_size: int) -> None:
    """Raise `ValueError` for a grid with more positions than the search can number."""
    if grid_size > MAX_GRID_SIZE:
        raise ValueError(f"found {grid_size} tokens a side, expected at most {MAX_GRID_SIZE}")


def locality_aware_orders(
    num: int,
    group_sizes: Sequence[int],
    grid_size: int,
    proximity_threshold: float = 1.0,
    repulsion_threshold: float = 1.0,
    seed: int = 0,
    image_ids: Sequence[int] | np.ndarray | None = None,
    known: np.ndarray | None = None,
) -> np.ndarray:
    """Make orders that decode near what is known and far apart within a group (method section 6).

    `num` = B rows of raster positions in generation order, (B, G * G) int64, on a grid of side
    `grid_size` = G; a ValueError if a size, threshold or known position is out of range. A row
    depends on the settings, the seed, its own id and what is known of it only.

    Group sizes sum to the G * G positions less the `known` ones, (B, M) raster positions in any
    order that rows begin with (section 10). Near is what scores `proximity_threshold` or more,
    decoded edge neighbours counting 1 and corner neighbours 1 / sqrt(2); a taken position keeps
    others up to the Chebyshev distance `repulsion_threshold` out of the proximity pass of its
    group. `image_ids` are B whole numbers, by default 0 .. B - 1.
    """
    num_tokens = grid_size * grid_size
    check_grid_size(grid_size)
    ids = _image_ids(num, image_ids)
    known = np.empty((num, 0), dtype=np.int64) if known is None else np.asarray(known)
    if known.ndim != 2 or len(known) != num or known.dtype.kind not in "iu":
        found = f"found known positions of shape {known.shape} and type {known.dtype}"
        raise ValueError(f"{found}, expected rows of whole numbers for {num} orders")
    if known.size and (known.min() < 0 or known.max() >= num_tokens):
        found = f"found known positions {known.min()}..{known.max()}"
        raise ValueError(f"{found}, expected 0..{num_tokens - 1}")
    if not np.diff(np.sort(known, axis=1)).all():
        raise ValueError("found a known position repeated, expected each once")
    validate_group_sizes(group_sizes, num_tokens - known.shape[1])
    for name, value in (("proximity", proximity_threshold), ("repulsion", repulsion_threshold)):
        if not 0 <= value < math.inf:
            expected = "expected a finite number of at least 0"
            raise ValueError(f"found {name} threshold {value}, {expected}")
    # Not at the top of the file: it loads a compiler, which takes longer than the rest together.
    from orders.locality_kernel import make_orders

    thresholds = proximity_threshold, repulsion_threshold
    return make_orders(ids, known, group_sizes, grid_size, *thresholds, seed)


def random_orders(
    num: int, num_tokens: int, seed: int = 0, image_ids: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
    """Make uniformly random orders (B, N) int64; the rest as of `locality_aware_orders`."""
    ids = _image_ids(num, image_ids)
    orders = np.empty((num, num_tokens), dtype=np.int64)
    # All at once would take twice the memory, and be slower: the words leave the cache.
    at_once = max(1, 2**16 // num_tokens)
    for rows in (slice(start, start + at_once) for start in range(0, num, at_once)):
        orders[rows] = streams.permutations("random order", seed, ids[rows], count=num_tokens)
    return orders


def _image_ids(num: int, image_ids: Sequence[int] | np.ndarray | None) -> np.ndarray:
    if num < 1:
        raise ValueError(f"found {num} orders to make, expected at least 1")
    ids = np.arange(num) if image_ids is None else np.asarray(image_ids, dtype=np.int64)
    if ids.shape != (num,):
        raise ValueError(f"found image ids of shape {ids.shape}, expected ({num},)")
    return ids
