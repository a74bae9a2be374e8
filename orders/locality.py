"""Locality-aware generation orders, many at once (method section 6; paper section 3.3).

Each group wants positions near what is decoded (context) yet far from one another (independence):
first a proximity pass over the positions with enough decoded neighbours, then, if the group is not
full, farthest-point sampling over all that are left.

Both are the same motion for every image of a batch: give each position a whole-number key, take the
position with the largest, change the keys. A key orders by what matters first in its high bits and
breaks ties with random low bits; -1 marks a position that cannot be taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orders.group_sizes import validate_group_sizes
from util import streams

# Bits of a key, from the lowest: random number, score's rank, low-score flag, squared distance.
_RANK_SHIFT = 32
_LOW_SCORE = 1 << 37
_DISTANCE_SHIFT = 38
_RANDOM_MASK = np.uint64((1 << _RANK_SHIFT) - 1)

# A position is described by 5 * (decoded edge neighbours) + (decoded corner neighbours), 0 to 24,
# or by 25 once it is decoded itself.
_DECODED = 25
_SCORES = np.array([edge + corner / math.sqrt(2) for edge in range(5) for corner in range(5)])
# Scores of different neighbourhoods differ by 0.1 or more; this only absorbs rounding.
_SCORE_TOLERANCE = 1e-9

# Positions handled at once, over all images: the keys of a batch then stay in the CPU's cache.
_BATCH_POSITIONS = 1 << 16

_PUBLISHED_REPULSION = {(256, 20): 2.0, (256, 32): 2.0, (1024, 48): 4.0}


def published_repulsion(num_tokens: int, steps: int) -> float:
    """The repulsion threshold published for a grid and number of steps (section 6), else 1."""
    return _PUBLISHED_REPULSION.get((num_tokens, steps), 1.0)


def locality_aware_orders(
    num: int,
    group_sizes: Sequence[int],
    grid_size: int,
    proximity_threshold: float = 1.0,
    repulsion_threshold: float = 1.0,
    seed: int = 0,
    image_ids: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Orders that decode near what is known and far apart within a group (method section 6).

    Args:
        num: number of orders, M.
        group_sizes: K sizes that sum to G * G.
        grid_size: side of the grid, G.
        proximity_threshold: score from which a position counts as near what is decoded; decoded
            edge neighbours count 1 and corner neighbours 1 / sqrt(2).
        repulsion_threshold: Chebyshev distance, in positions, up to which a taken position keeps
            others out of the proximity pass of its group.
        seed: of the random choices.
        image_ids: M whole numbers, by default 0 .. M - 1. A row depends on the settings, the seed
            and its own id only.

    Returns:
        (M, G * G) int64: raster positions in generation order.

    Raises:
        ValueError: a size or threshold is out of range.
    """
    num_tokens = grid_size * grid_size
    validate_group_sizes(group_sizes, num_tokens)
    for name, value in (("proximity", proximity_threshold), ("repulsion", repulsion_threshold)):
        if not 0 <= value < math.inf:
            raise ValueError(
                f"found {name} threshold {value}, expected a finite number of at least 0"
            )
    ids = _image_ids(num, image_ids)
    tables = _Tables.make(grid_size, proximity_threshold, repulsion_threshold)
    orders = np.empty((num, num_tokens), dtype=np.int64)
    rows = max(1, _BATCH_POSITIONS // num_tokens)
    for start in range(0, num, rows):
        batch = ids[start : start + rows]
        orders[start : start + rows] = _batch_of_orders(batch, group_sizes, tables, seed)
    return orders


def random_orders(
    num: int,
    num_tokens: int,
    seed: int = 0,
    image_ids: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Uniformly random orders; arguments and errors as for `locality_aware_orders`.

    Returns:
        (M, N) int64: raster positions in generation order.
    """
    ids = _image_ids(num, image_ids)
    orders = np.empty((num, num_tokens), dtype=np.int64)
    rows = max(1, _BATCH_POSITIONS // num_tokens)
    for start in range(0, num, rows):
        batch = ids[start : start + rows]
        orders[start : start + rows] = streams.permutations(
            "random order", seed, batch, count=num_tokens
        )
    return orders


def _image_ids(num: int, image_ids: Sequence[int] | np.ndarray | None) -> np.ndarray:
    if num < 1:
        raise ValueError(f"found {num} orders to make, expected at least 1")
    ids = np.arange(num) if image_ids is None else np.asarray(image_ids, dtype=np.int64)
    if ids.shape != (num,):
        raise ValueError(f"found image ids of shape {ids.shape}, expected ({num},)")
    return ids


@dataclass(frozen=True)
class _Tables:
    """What depends on the grid and thresholds only.

    Attributes:
        side: of the grid, G.
        near: (N, W) int64, the positions within the repulsion threshold of each position, itself
            included, with repetitions at the border.
        axis_distance: (G, G) int64, squared distances along one axis, as the distance bits of keys.
        pass_keys: (26,) int64 by neighbourhood, keys of the proximity pass without random bits.
        fill_keys: (26,) int64, the same for the fill, without distance.
    """

    side: int
    near: np.ndarray
    axis_distance: np.ndarray
    pass_keys: np.ndarray
    fill_keys: np.ndarray

    @classmethod
    def make(cls, side: int, proximity_threshold: float, repulsion_threshold: float) -> _Tables:
        reach = min(math.floor(repulsion_threshold), side - 1)
        along = np.arange(side)
        # Clipping moves a neighbour outside the grid to the border, which is within reach as well.
        band = (along[:, None] + np.arange(-reach, reach + 1)).clip(0, side - 1)
        near = band[:, None, :, None] * side + band[None, :, None, :]
        rank = np.argsort(np.argsort(_SCORES)) << _RANK_SHIFT
        enough = proximity_threshold - _SCORE_TOLERANCE <= _SCORES
        return cls(
            side=side,
            near=near.reshape(side * side, -1),
            axis_distance=(along[:, None] - along) ** 2 << _DISTANCE_SHIFT,
            pass_keys=np.append(np.where(enough, rank, -1), -1),
            fill_keys=np.append(np.where(enough, rank, rank | _LOW_SCORE), -1),
        )

    def distances(self, positions: np.ndarray) -> np.ndarray:
        """(B, N) squared distances, as bits of keys, from (B,) positions to all others."""
        y, x = np.divmod(positions, self.side)
        squared = self.axis_distance[y][:, :, None] + self.axis_distance[x][:, None, :]
        return squared.reshape(len(positions), -1)


def _batch_of_orders(
    ids: np.ndarray, group_sizes: Sequence[int], tables: _Tables, seed: int
) -> np.ndarray:
    """(B, N) orders of the images `ids` (B,)."""
    side, num_tokens = tables.side, tables.side**2
    orders = np.empty((len(ids), num_tokens), dtype=np.int64)
    # One cell of margin spares the neighbour sums the border.
    decoded = np.zeros((len(ids), side + 2, side + 2), dtype=np.uint8)
    start = 0
    for step, size in enumerate(group_sizes):
        around = _neighbourhoods(decoded)
        words = streams.words("order", seed, ids, step, count=num_tokens)
        group = orders[:, start : start + size]
        # The two passes use different halves of the random words: being skipped by the first must
        # not say anything about the ties of the second.
        high = (words >> np.uint64(_RANK_SHIFT)).view(np.int64)
        taken = _proximity_pass(group, tables.pass_keys[around] | high, tables.near)
        short = np.flatnonzero(taken < size)
        if short.size:
            low = (words[short] & _RANDOM_MASK).view(np.int64)
            keys = tables.fill_keys[around[short]] | low
            group[short] = _fill(group[short], taken[short], keys, tables)
        y, x = np.divmod(group, side)
        decoded[np.arange(len(ids))[:, None], y + 1, x + 1] = 1
        start += size
    return orders


def _neighbourhoods(decoded: np.ndarray) -> np.ndarray:
    """What surrounds each position: (B, N) whole numbers, see `_DECODED`.

    Args:
        decoded: (B, G + 2, G + 2) uint8, 1 where decoded, with an empty margin.
    """
    above, here, below = decoded[:, :-2], decoded[:, 1:-1], decoded[:, 2:]
    edges = above[..., 1:-1] + below[..., 1:-1] + here[..., :-2] + here[..., 2:]
    corners = above[..., :-2] + above[..., 2:] + below[..., :-2] + below[..., 2:]
    around = np.where(here[..., 1:-1] == 1, _DECODED, 5 * edges + corners)
    return around.reshape(len(decoded), -1)


def _proximity_pass(group: np.ndarray, keys: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Take positions from the highest score down, none within reach of one already taken.

    Args:
        group: (B, g) int64, filled from the left.
        keys: (B, N) int64, by score; used up.
        near: the table of `_Tables`.

    Returns:
        (B,) int64: how many were found, g or fewer.
    """
    rows = np.arange(len(keys))
    taken = np.zeros(len(keys), dtype=np.int64)
    for slot in range(group.shape[1]):
        best = keys.argmax(axis=1)
        found = keys[rows, best] >= 0
        if not found.any():
            break
        # An image that has run out has no key left to lose, and its slot is filled later.
        group[:, slot] = best
        taken += found
        keys[rows[:, None], near[best]] = -1
    return taken


def _fill(group: np.ndarray, taken: np.ndarray, keys: np.ndarray, tables: _Tables) -> np.ndarray:
    """Fill the groups by farthest-point sampling over all positions that are left.

    Args:
        group: (B, g) int64, of which row b has its first `taken[b]` entries.
        taken: (B,) int64, all below g.
        keys: (B, N) int64, by low-score flag, score and random number; -1 where decoded.
        tables: of the grid.

    Returns:
        (B, g) int64: the full groups.
    """
    rows = np.arange(len(keys))
    group, ties = group.copy(), keys
    # A group still empty starts with a random position, whatever its score.
    keys = np.where(ties >= 0, ties & np.int64(_RANDOM_MASK), -1)
    for slot in range(group.shape[1]):
        best = np.where(slot < taken, group[:, slot], keys.argmax(axis=1))
        group[:, slot] = best
        keys[rows, best] = -1
        closer = tables.distances(best) | ties
        if slot == 0:
            keys = np.where(keys >= 0, closer, -1)
        else:
            np.minimum(keys, closer, out=keys)
    return group


def order_statistics(
    orders: np.ndarray, group_sizes: Sequence[int], grid_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """How near to what is decoded, and how far apart, the positions of each group are.

    Args:
        orders: (M, N) whole numbers: valid orders of a G x G grid.
        group_sizes: K sizes that sum to N.
        grid_size: side of the grid, G.

    Returns:
        Two (M, K) float64 arrays: the mean score of a group's positions against earlier groups
        (method section 6), and the smallest Euclidean distance, in positions, between two of them
        (NaN for groups of one).
    """
    num, num_tokens = orders.shape
    orders = orders.astype(np.int64)
    sizes = np.asarray(group_sizes)
    starts = np.cumsum(sizes) - sizes
    step_of = np.full((num, grid_size + 2, grid_size + 2), len(sizes))
    y, x = np.divmod(orders, grid_size)
    step_of[np.arange(num)[:, None], y + 1, x + 1] = np.repeat(np.arange(len(sizes)), sizes)
    own = step_of[:, 1:-1, 1:-1]
    scores = np.zeros(own.shape)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            if dy or dx:
                rows = slice(1 + dy, grid_size + 1 + dy)
                columns = slice(1 + dx, grid_size + 1 + dx)
                scores += (step_of[:, rows, columns] < own) / math.hypot(dy, dx)
    in_order = np.take_along_axis(scores.reshape(num, num_tokens), orders, axis=1)
    mean_scores = np.add.reduceat(in_order, starts, axis=1) / sizes

    smallest = np.full((num, len(sizes)), np.nan)
    for step, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size < 2:
            continue
        squared = np.full(num, np.iinfo(np.int64).max)
        for offset in range(1, size):
            first, second = slice(start, start + size - offset), slice(start + offset, start + size)
            apart = (y[:, first] - y[:, second]) ** 2 + (x[:, first] - x[:, second]) ** 2
            squared = np.minimum(squared, apart.min(axis=1))
        smallest[:, step] = np.sqrt(squared)
    return mean_scores, smallest
