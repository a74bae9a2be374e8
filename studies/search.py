"""Searching thresholds and group-size shapes for the plan with the lowest NLL."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from orders.group_sizes import RULE, group_sizes, shaped_group_sizes
from orders.sources import locality_aware
from studies.likelihood import Estimate, Measured, Setting
from studies.report import named
from util import streams
from util.geometry import TokenGrid

# Settings, image ids -> what they cost there, the same on every process.
Measure = Callable[[Sequence[Setting], np.ndarray], list[Measured]]

ORDERS_IN_FILE = 60000
# Above the score of a position whose neighbours are all decoded, 4 + 4 / sqrt(2): none counts as
# near, and every group is farthest-point sampling.
REPULSION_ALONE = 7.0
SHOWN = 10  # candidates in the table


class Candidate(NamedTuple):
    """Thresholds of a locality-aware order and a shape of group sizes."""

    repulsion: float
    proximity: float
    shape: str

    def setting(self, grid: TokenGrid, steps: int, seed: int) -> Setting:
        """Make orders and sizes; raise `ValueError` where there is no such shape or split."""
        name = f"lpd:{self.repulsion:g}:{self.proximity:g}"
        orders = locality_aware(grid, seed, self.repulsion, self.proximity)
        sizes = shaped_group_sizes(grid.num_tokens, steps, self.shape)
        return Setting(name, orders, tuple(sizes), self.shape)


def all_candidates(
    repulsions: Sequence[float], proximities: Sequence[float], shapes: Sequence[str]
) -> list[Candidate]:
    """List combinations that differ: from proximity `REPULSION_ALONE` up repulsions are alike."""
    different: dict[Candidate | str, Candidate] = {}
    for candidate in map(Candidate._make, product(repulsions, proximities, shapes)):
        alone = candidate.proximity >= REPULSION_ALONE
        different.setdefault(candidate.shape if alone else candidate, candidate)
    return list(different.values())


def search(
    measure: Measure,
    candidates: Sequence[Candidate],
    grid: TokenGrid,
    steps: int,
    seed: int,
    image_ids: np.ndarray,
) -> tuple[list[str], dict[str, Any]]:
    """Find the candidate of lowest mean NLL on one half of the images, measure it on the other.

    Returns Markdown lines and the entry of the JSON file; differences are to the published
    thresholds and sizes. `seed` names orders and halves of `image_ids` (n,), n >= 4 in ascending
    order. Raises `ValueError` where a candidate's shape cannot be had.
    """
    shuffled = image_ids[streams.permutations("order search", seed, count=len(image_ids))[0]]
    first, second = map(np.sort, np.split(shuffled, [len(image_ids) // 2]))
    usual = Setting("lpd", locality_aware(grid, seed), tuple(group_sizes(grid.num_tokens, steps)))
    settings = [candidate.setting(grid, steps, seed) for candidate in candidates]
    usual_here, *here = measure([usual, *settings], first)
    ranked = sorted(zip(candidates, here, strict=True), key=lambda pair: pair[1].nll.mean())
    best, winner = ranked[0][0], ranked[0][1].setting
    usual_there, there = measure([usual, winner], second)
    lines = [f"| {steps} steps | repulsion | proximity | sizes | nats an image | minus published |"]
    lines.append("|---" * 6 + "|")

    def judge(
        half: str, published: Measured, pairs: Sequence[tuple[Candidate, Measured]]
    ) -> Iterator[dict[str, Any]]:
        lines.append(
            f"| {half} | published | published | {RULE} | {Estimate.of(published.nll)} | |"
        )
        for place, (candidate, measured) in enumerate(pairs):
            nll, less = Estimate.of(measured.nll), Estimate.of(measured.nll - published.nll)
            if place < SHOWN:
                cells = (f"{candidate.repulsion:g}", f"{candidate.proximity:g}", candidate.shape)
                lines.append(f"| {half} | {' | '.join(cells)} | {nll} | {less} |")
            yield {**candidate._asdict(), **named("nll", nll), **named("minus_published", less)}

    entry = {"steps": steps, "candidates": list(judge("searched", usual_here, ranked))}
    (entry["best"],) = judge("confirmed", usual_there, [(best, there)])
    sizes = list(winner.group_sizes)
    flags = {
        "img_size": grid.image_size,
        "vqgan_stride": grid.stride,
        "group_sizes": sizes,
        "proximity_threshold": f"{best.proximity:g}",
        "repulsion_threshold": f"{best.repulsion:g}",
        "seed": seed,
        "num_runs": ORDERS_IN_FILE,
        "output_file": f"orders/{grid.side}x{grid.side}_steps{steps}_best.npy",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = shlex.join(["python", "orders/run_lpd_order.py", *words])
    entry["best"] |= {"group_sizes": str(sizes), "order_file_command": command}
    return [*lines, f"its order file: {command}"], entry
