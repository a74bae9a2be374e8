"""The two distances that an order trades (paper section 3.3): to known context, within a group."""

from collections.abc import Sequence

import numpy as np

from orders.group_sizes import validate_group_sizes
from util.geometry import grid_side

# Distances between positions held at once, over all orders: bounds the memory used.
_BATCH_PAIRS = 1 << 22


def group_distances(
    orders: np.ndarray, group_sizes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Measure how far each group's positions are from the context and from one another.

    Valid orders (M, N) -> two (M, K) float64 arrays, each a mean over the positions of a group: the
    Euclidean distance, in grid positions, to the nearest position of the earlier groups (NaN for
    the first group), and to the nearest other position of the same group (NaN for groups of one).
    """
    num, num_tokens = orders.shape
    side = grid_side(num_tokens)
    validate_group_sizes(group_sizes, num_tokens)
    y, x = np.divmod(np.arange(num_tokens), side)
    apart = np.hypot(y[:, None] - y, x[:, None] - x).astype(np.float32)
    np.fill_diagonal(apart, np.inf)  # no position is its own neighbour
    stops = np.cumsum(group_sizes)
    to_context = np.full((num, len(stops)), np.nan)
    within = to_context.copy()
    batch = max(1, _BATCH_PAIRS // num_tokens**2)
    for rows in (slice(first, first + batch) for first in range(0, num, batch)):
        positions = orders[rows].astype(np.int64)
        in_order = apart[positions[:, :, None], positions[:, None, :]]
        for step, (stop, size) in enumerate(zip(stops, group_sizes, strict=True)):
            start = stop - size
            group = in_order[:, start:stop]
            if start:
                nearest = group[:, :, :start].min(axis=2)
                to_context[rows, step] = nearest.mean(axis=1, dtype=np.float64)
            if size > 1:
                nearest = group[:, :, start:stop].min(axis=2)
                within[rows, step] = nearest.mean(axis=1, dtype=np.float64)
    return to_context, within
