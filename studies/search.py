"""Searching thresholds and group-size shapes for the plan with the lowest NLL."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

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


@dataclass(frozen=True)
class Candidate:
    """Thresholds of a locality-aware order and a shape of group sizes."""

    repulsion: float
    proximity: float
    shape: str

    def setting(self, grid: TokenGrid, steps: int, seed: int) -> Setting:
        """What they come to; raises `ValueError` where there is no such shape or split."""
        name = f"lpd:{self.repulsion:g}:{self.proximity:g}"
        orders = locality_aware(grid, seed, self.repulsion, self.proximity)
        sizes = shaped_group_sizes(grid.num_tokens, steps, self.shape)
        return Setting(name, orders, tuple(sizes), self.shape)


@dataclass(frozen=True)
class Outcome:
    """What a search comes to.

    Attributes:
        candidates: all of them and what they cost on the first half, best first.
        usual: the published thresholds and sizes, on the first half.
        confirmed: the best candidate on the second half, which had no say in the choice.
        usual_there: the published ones there.
    """

    candidates: list[tuple[Candidate, Measured]]
    usual: Measured
    confirmed: Measured
    usual_there: Measured

    @property
    def best(self) -> Candidate:
        return self.candidates[0][0]

    @property
    def steps(self) -> int:
        return self.usual.setting.steps


def all_candidates(
    repulsions: Sequence[float], proximities: Sequence[float], shapes: Sequence[str]
) -> list[Candidate]:
    """Every combination that differs; from proximity `REPULSION_ALONE` up repulsions are alike."""
    different: dict[Candidate | str, Candidate] = {}
    for values in product(repulsions, proximities, shapes):
        candidate = Candidate(*values)
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
) -> Outcome:
    """Find the candidate of lowest mean NLL on one half of the images, and measure it on the other.

    Args:
        seed: of the orders and of the halves.
        image_ids: (n,) images, at least 4.

    Raises:
        ValueError: a candidate's shape cannot be had.
    """
    first, second = halves(image_ids, seed)
    sizes = tuple(group_sizes(grid.num_tokens, steps))
    usual = Setting("lpd", locality_aware(grid, seed), sizes)
    settings = [candidate.setting(grid, steps, seed) for candidate in candidates]
    usual_here, *measured = measure([usual, *settings], first)
    pairs = zip(candidates, measured, strict=True)
    ranked = sorted(pairs, key=lambda pair: pair[1].nll.mean())
    usual_there, confirmed = measure([usual, ranked[0][1].setting], second)
    return Outcome(ranked, usual_here, confirmed, usual_there)


def halves(image_ids: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two random halves of (n,) image ids, each sorted."""
    shuffled = streams.permutations("order search", seed, count=len(image_ids))[0]
    middle = len(image_ids) // 2
    return image_ids[np.sort(shuffled[:middle])], image_ids[np.sort(shuffled[middle:])]


def table(outcome: Outcome, rows: int = 10) -> list[str]:
    """Markdown lines: the best candidates on the first half, and the confirmation."""
    lines = [
        f"| {outcome.steps} steps | repulsion | proximity | sizes | nats an image "
        "| minus published |",
        "|---|---|---|---|---|---|",
    ]
    confirmed = [(outcome.best, outcome.confirmed)]
    for half, usual, candidates in (
        ("searched", outcome.usual, outcome.candidates[:rows]),
        ("confirmed", outcome.usual_there, confirmed),
    ):
        lines.append(f"| {half} | published | published | {RULE} | {Estimate.of(usual.nll)} | |")
        for candidate, measured in candidates:
            lines.append(
                f"| {half} | {candidate.repulsion:g} | {candidate.proximity:g} | {candidate.shape} "
                f"| {Estimate.of(measured.nll)} | {Estimate.of(measured.nll - usual.nll)} |"
            )
    return lines


def entry(outcome: Outcome, command: str) -> dict[str, Any]:
    """The same, of all candidates, for a JSON file."""

    def figures(measured: Measured, usual: Measured) -> dict[str, float]:
        difference = Estimate.of(measured.nll - usual.nll)
        return named("nll", Estimate.of(measured.nll)) | named("minus_published", difference)

    return {
        "steps": outcome.steps,
        "best": {
            **vars(outcome.best),
            "group_sizes": str(list(outcome.confirmed.setting.group_sizes)),
            "order_file_command": command,
            **figures(outcome.confirmed, outcome.usual_there),
        },
        "candidates": [
            {**vars(candidate), **figures(measured, outcome.usual)}
            for candidate, measured in outcome.candidates
        ],
    }


def order_file_command(outcome: Outcome, grid: TokenGrid, seed: int) -> str:
    """The command that writes the order file of the best candidate."""
    flags = {
        "img_size": grid.image_size,
        "vqgan_stride": grid.stride,
        "group_sizes": list(outcome.confirmed.setting.group_sizes),
        "proximity_threshold": f"{outcome.best.proximity:g}",
        "repulsion_threshold": f"{outcome.best.repulsion:g}",
        "seed": seed,
        "num_runs": ORDERS_IN_FILE,
        "output_file": f"orders/{grid.side}x{grid.side}_steps{outcome.steps}_best.npy",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return shlex.join(["python", "orders/run_lpd_order.py", *words])
