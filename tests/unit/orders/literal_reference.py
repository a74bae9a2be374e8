"""A slow, literal reading of method section 6, to compare the fast one with.

It shares nothing with `orders.locality`: plain Python, own random numbers, floating-point scores.
"""

import math
import random

Cell = tuple[int, int]


def one_order(
    group_sizes: list[int], grid_size: int, proximity: float, repulsion: float, rng: random.Random
) -> list[int]:
    """One order: raster positions in generation order."""
    cells: list[Cell] = []
    for size in group_sizes:
        decoded = set(cells)
        for _ in range(size):
            group = cells[len(decoded) :]
            legal = legal_choices(decoded, group, grid_size, proximity, repulsion)
            cells.append(rng.choice(legal))
    return [y * grid_size + x for y, x in cells]


def legal_choices(
    decoded: set[Cell], group: list[Cell], grid_size: int, proximity: float, repulsion: float
) -> list[Cell]:
    """Every position the rules allow as the next of a group, all equally likely, raster order."""
    left = {(y, x) for y in range(grid_size) for x in range(grid_size)} - decoded - set(group)
    # Rounded, so that the same neighbours in another order of summation score the same.
    score = {cell: round(proximity_score(cell, decoded), 9) for cell in left}
    near = {cell for cell in left if score[cell] >= round(proximity, 9)}
    candidates = {
        (y, x) for y, x in near if all(max(abs(y - v), abs(x - u)) > repulsion for v, u in group)
    }
    merit = score
    # Once a group has had to be filled, no candidate is left for the rest of it: groups only grow.
    if not candidates:
        candidates, merit = left, dict.fromkeys(left, 0)
        if group:
            distance = {cell: min(round(math.dist(cell, o), 9) for o in group) for cell in left}
            merit = {cell: (distance[cell], cell not in near, score[cell]) for cell in left}
    best = max(merit[cell] for cell in candidates)
    return sorted(cell for cell in candidates if merit[cell] == best)


def proximity_score(cell: Cell, decoded: set[Cell]) -> float:
    """Sum of 1 / distance over the decoded positions of the 8-neighbourhood."""
    y, x = cell
    around = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    return sum(1 / math.dist(cell, other) for other in around if other in decoded)
