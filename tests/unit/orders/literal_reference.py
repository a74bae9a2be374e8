"""A slow, literal reading of method section 6, to compare the fast one with.

It shares nothing with `orders.locality`: plain Python, own random numbers, floating-point scores.
"""

from __future__ import annotations

import math
import random


def one_order(
    group_sizes: list[int],
    grid_size: int,
    proximity_threshold: float,
    repulsion_threshold: float,
    rng: random.Random,
) -> list[int]:
    """One order: raster positions in generation order."""
    cells = [(y, x) for y in range(grid_size) for x in range(grid_size)]
    decoded: set[tuple[int, int]] = set()
    order = []
    for step, size in enumerate(group_sizes):
        free = [cell for cell in cells if cell not in decoded]
        if step == 0:
            assert size == 1
            group = [rng.choice(free)]
        else:
            group = _one_group(free, decoded, size, proximity_threshold, repulsion_threshold, rng)
        decoded.update(group)
        order += [y * grid_size + x for y, x in group]
    return order


def _one_group(
    free: list[tuple[int, int]],
    decoded: set[tuple[int, int]],
    size: int,
    proximity_threshold: float,
    repulsion_threshold: float,
    rng: random.Random,
) -> list[tuple[int, int]]:
    # Rounded, so that the same neighbours in another order of summation score the same.
    score = {cell: round(proximity_score(cell, decoded), 9) for cell in free}
    near = [cell for cell in free if score[cell] >= round(proximity_threshold, 9)]
    far = set(free) - set(near)
    rng.shuffle(near)
    near.sort(key=lambda cell: -score[cell])  # stable: equal scores stay shuffled

    group: list[tuple[int, int]] = []
    skipped = []
    for cell in near:
        if len(group) < size and all(
            chebyshev(cell, other) > repulsion_threshold for other in group
        ):
            group.append(cell)
        else:
            skipped.append(cell)

    left = [*sorted(far), *skipped]
    while len(group) < size:
        if group:
            chosen = max(
                left,
                key=lambda cell: (
                    min(round(math.dist(cell, other), 9) for other in group),
                    cell in far,
                    score[cell],
                    rng.random(),
                ),
            )
        else:
            chosen = rng.choice(left)
        group.append(chosen)
        left.remove(chosen)
    return group


def legal_choices(
    decoded: set[tuple[int, int]],
    group: list[tuple[int, int]],
    grid_size: int,
    proximity_threshold: float,
    repulsion_threshold: float,
) -> list[tuple[int, int]]:
    """Every position the rules allow next, all equally likely, in raster order.

    Args:
        decoded: positions of earlier groups.
        group: positions of this group so far.
    """
    left = {(y, x) for y in range(grid_size) for x in range(grid_size)} - decoded - set(group)
    score = {cell: round(proximity_score(cell, decoded), 9) for cell in left}
    near = {cell for cell in left if score[cell] >= round(proximity_threshold, 9)}
    candidates = {
        cell
        for cell in near
        if all(chebyshev(cell, other) > repulsion_threshold for other in group)
    }
    merit = score
    # Once a group has had to be filled, no candidate is left for the rest of it: groups only grow.
    if not candidates:
        candidates = left
        merit = {
            cell: (
                min(round(math.dist(cell, other), 9) for other in group),
                cell not in near,
                score[cell],
            )
            if group
            else 0
            for cell in left
        }
    best = max(merit[cell] for cell in candidates)
    return sorted(cell for cell in candidates if merit[cell] == best)


def proximity_score(cell: tuple[int, int], decoded: set[tuple[int, int]]) -> float:
    """Sum of 1 / distance over the decoded positions of the 8-neighbourhood."""
    y, x = cell
    around = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    return sum(1 / math.dist(cell, other) for other in around if other in decoded)


def chebyshev(a: tuple[int, int], b: tuple[int, int]) -> int:
    """The larger of the vertical and the horizontal distance."""
    return max(abs(a[0] - b[0]), abs(a[1] - b[1]))


def mean_scores(order: list[int], group_sizes: list[int], grid_size: int) -> list[float]:
    """Per group: mean score against earlier groups."""
    cells = [divmod(position, grid_size) for position in order]
    scores, start = [], 0
    for size in group_sizes:
        group, decoded = cells[start : start + size], set(cells[:start])
        scores.append(sum(proximity_score(cell, decoded) for cell in group) / size)
        start += size
    return scores
