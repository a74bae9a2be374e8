"""Searching thresholds and group-size shapes for the plan with the lowest NLL."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from orders.group_sizes import group_sizes, shaped_group_sizes
from orders.sources import locality_aware
from studies.likelihood import Estimate, Measured, Setting
from studies.report import named
from util import streams
from util.geometry import TokenGrid

# Settings, image ids -> what they cost there, the same on every process.
Measure = Callable[[Sequence[Setting], np.ndarray], list[Measured]]
# Above the score of a position whose neighbours are all decoded, 4 + 4 / sqrt(2): none counts as
# near, and every group is farthest-point sampling.
REPULSION_ALONE = 7.0


class Candidate(NamedTuple):
    """Thresholds of a locality-aware order and a shape of group sizes."""

    repulsion: float
    proximity: float
    shape: str


def plans(
    repulsions: Sequence[float],
    proximities: Sequence[float],
    shapes: Sequence[str],
    grid: TokenGrid,
    steps: int,
    seed: int,
) -> dict[Candidate, Setting]:
    """Combine what differs: from proximity `REPULSION_ALONE` up repulsions are alike.

    Raises `ValueError` where there is no such shape or split.
    """
    different: dict[tuple, Candidate] = {}
    for candidate in map(Candidate._make, product(repulsions, proximities, shapes)):
        alone = candidate.proximity >= REPULSION_ALONE
        different.setdefault(candidate[2:] if alone else candidate, candidate)
    return {
        candidate: Setting(
            f"lpd:{candidate.repulsion:g}:{candidate.proximity:g}",
            locality_aware(grid, seed, candidate.repulsion, candidate.proximity),
            tuple(shaped_group_sizes(grid.num_tokens, steps, candidate.shape)),
            candidate.shape,
        )
        for candidate in different.values()
    }


def search(
    measure: Measure,
    plans: Mapping[Candidate, Setting],
    grid: TokenGrid,
    seed: int,
    image_ids: np.ndarray,
) -> dict[str, Any]:
    """Find the plan of lowest mean NLL on one half of the images, measure it on the other.

    Returns the entry of the JSON file; differences are to the published thresholds and sizes.
    `seed` names orders and halves of `image_ids` (n,), n >= 4 in ascending order.
    """
    shuffled = image_ids[streams.permutations("order search", seed, count=len(image_ids))[0]]
    first, second = map(np.sort, np.split(shuffled, [len(image_ids) // 2]))
    steps = next(iter(plans.values())).steps
    usual = Setting("lpd", locality_aware(grid, seed), tuple(group_sizes(grid.num_tokens, steps)))

    def judge(candidate: Candidate, measured: Measured, published: Measured) -> dict[str, Any]:
        nll, less = Estimate.of(measured.nll), Estimate.of(measured.nll - published.nll)
        return {**candidate._asdict(), **named("nll", nll), **named("minus_published", less)}

    published, *here = measure([usual, *plans.values()], first)
    ranked = sorted(zip(plans, here, strict=True), key=lambda pair: pair[1].nll.mean())
    best = ranked[0][0]
    published_there, there = measure([usual, plans[best]], second)
    sizes = str(list(plans[best].group_sizes))
    flags = {
        "img_size": grid.image_size,
        "vqgan_stride": grid.stride,
        "group_sizes": sizes,
        "proximity_threshold": f"{best.proximity:g}",
        "repulsion_threshold": f"{best.repulsion:g}",
        "seed": seed,
        "num_runs": 60000,
        "output_file": f"orders/{grid.side}x{grid.side}_steps{steps}_best.npy",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = shlex.join(["python", "orders/run_lpd_order.py", *words])
    confirmed = judge(best, there, published_there)
    return {
        "steps": steps,
        "candidates": [judge(*pair, published) for pair in ranked],
        "best": {**confirmed, "group_sizes": sizes, "order_file_command": command},
    }


def search_table(searches: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, object]]:
    """Make rows of candidates on the images that chose among them, and the best on the others.

    Of `searches`, entries of the JSON file, the five best, repulsion alone and the worst.
    """
    for search in searches:
        ranked = list(enumerate(search["candidates"], start=1))
        alone = [pair for pair in ranked if pair[1]["proximity"] >= REPULSION_ALONE]
        shown = dict([*ranked[:5], *alone[:1], ranked[-1]])
        halves = [("chosen on", rank, candidate) for rank, candidate in shown.items()]
        for half, rank, each in [*halves, ("the others", 1, search["best"])]:
            yield {
                **{"steps": search["steps"], "images": half, "rank": rank},
                "repulsion": f"{each['repulsion']:g}",
                "proximity": f"{each['proximity']:g}",
                "sizes": each["shape"],
                "nats": Estimate(each["nll"], each["nll_se"]),
                "minus published": Estimate(each["minus_published"], each["minus_published_se"]),
            }
