"""Searching thresholds and group-size shapes for the plan with the lowest NLL."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orders.group_sizes import RULE, group_sizes, shaped_group_sizes
from orders.sources import locality_aware
from studies.likelihood import Estimate, Measured, Setting
from util import streams
from util.geometry import TokenGrid

# Settings, image ids -> what they cost there.
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
        """What they come to on a grid, in a number of steps.

        Raises:
            ValueError: there is no such shape, or no split into so many steps.
        """
        name = f"lpd:{self.repulsion:g}:{self.proximity:g}"
        orders = locality_aware(grid, seed, self.repulsion, self.proximity)
        sizes = shaped_group_sizes(grid.num_tokens, steps, self.shape)
        return Setting(name, orders, tuple(sizes), self.shape)


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

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


def all_candidates(
    repulsions: Sequence[float], proximities: Sequence[float], shapes: Sequence[str]
) -> list[Candidate]:
    """Every combination that differs; from proximity `REPULSION_ALONE` up repulsions are alike."""
    found: dict[tuple, Candidate] = {}
    for repulsion, proximity, shape in itertools.product(repulsions, proximities, shapes):
        alone = proximity >= REPULSION_ALONE
        orders = (shape,) if alone else (repulsion, proximity, shape)
        found.setdefault(orders, Candidate(repulsion, proximity, shape))
    return list(found.values())


def search(
    measure: Measure,
    candidates: Sequence[Candidate],
    grid: TokenGrid,
    steps: int,
    seed: int,
    image_ids: np.ndarray,
) -> Found:
    """The candidate of lowest mean NLL on one half of the images, measured again on the other.

    Args:
        measure: of settings on images; the same on every process.
        candidates: what to choose from.
        grid: of the images.
        steps: K.
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
    return Found(ranked, usual_here, confirmed, usual_there)


def halves(image_ids: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two random halves of (n,) image ids, each sorted."""
    shuffled = streams.permutations("order search", seed, count=len(image_ids))[0]
    middle = len(image_ids) // 2
    return image_ids[np.sort(shuffled[:middle])], image_ids[np.sort(shuffled[middle:])]


def table(found: Found, rows: int = 10) -> list[str]:
    """Markdown lines: the best candidates on the first half, and the confirmation."""
    steps = found.usual.setting.steps
    lines = [
        f"| {steps} steps | repulsion | proximity | sizes | nats an image | minus published |",
        "|---|---|---|---|---|---|",
        f"| searched | published | published | {RULE} | {Estimate.of(found.usual.nll)} | |",
    ]
    for candidate, measured in found.candidates[:rows]:
        lines.append(_row("searched", candidate, measured, found.usual))
    best = found.candidates[0][0]
    lines.append(
        f"| confirmed | published | published | {RULE} | {Estimate.of(found.usual_there.nll)} | |"
    )
    lines.append(_row("confirmed", best, found.confirmed, found.usual_there))
    return lines


def _row(half: str, candidate: Candidate, measured: Measured, usual: Measured) -> str:
    cells = (
        half,
        f"{candidate.repulsion:g}",
        f"{candidate.proximity:g}",
        candidate.shape,
        str(Estimate.of(measured.nll)),
        str(Estimate.of(measured.nll - usual.nll)),
    )
    return f"| {' | '.join(cells)} |"


def entry(found: Found, command: str) -> dict[str, Any]:
    """The same, of all candidates, for a JSON file."""
    best = found.candidates[0][0]
    return {
        "steps": found.usual.setting.steps,
        "best": {
            **vars(best),
            "group_sizes": str(list(found.confirmed.setting.group_sizes)),
            "order_file_command": command,
            **_figures(found.confirmed, found.usual_there),
        },
        "candidates": [
            {**vars(candidate), **_figures(measured, found.usual)}
            for candidate, measured in found.candidates
        ],
    }


def _figures(measured: Measured, usual: Measured) -> dict[str, float]:
    nll, difference = Estimate.of(measured.nll), Estimate.of(measured.nll - usual.nll)
    return {
        "nll": round(nll.mean, 6),
        "nll_se": round(nll.se, 6),
        "minus_published": round(difference.mean, 6),
        "minus_published_se": round(difference.se, 6),
    }


def order_file_command(found: Found, grid: TokenGrid, seed: int) -> str:
    """The command that writes the order file of the best candidate."""
    best = found.candidates[0][0]
    steps = found.usual.setting.steps
    sizes = list(found.confirmed.setting.group_sizes)
    name = f"orders/{grid.side}x{grid.side}_steps{steps}_best.npy"
    words = ["python", "orders/run_lpd_order.py"]
    words += ["--img_size", grid.image_size, "--vqgan_stride", grid.stride, "--group_sizes", sizes]
    words += ["--proximity_threshold", f"{best.proximity:g}"]
    words += ["--repulsion_threshold", f"{best.repulsion:g}"]
    words += ["--seed", seed, "--num_runs", ORDERS_IN_FILE, "--output_file", name]
    return shlex.join(map(str, words))
