"""Searching thresholds and group-size shapes for the plan with the lowest NLL."""

import argparse
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


def plans(args: argparse.Namespace, grid: TokenGrid, steps: int) -> dict[Candidate, Setting]:
    """Combine what differs of --repulsions, --proximities and --shapes.

    From proximity `REPULSION_ALONE` up repulsions are alike. Raises `ValueError` where there is no
    such shape or split.
    """
    settings: dict[tuple, tuple[Candidate, Setting]] = {}
    for candidate in map(Candidate._make, product(args.repulsions, args.proximities, args.shapes)):
        repulsion, proximity, shape = candidate
        name = f"lpd:{repulsion:g}:{proximity:g}"
        orders = locality_aware(grid, args.seed, repulsion, proximity)
        setting = Setting(name, orders, shaped_group_sizes(grid.num_tokens, steps, shape), shape)
        what = (shape,) if proximity >= REPULSION_ALONE else candidate
        settings.setdefault(what, (candidate, setting))
    return dict(settings.values())


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
    usual = Setting("lpd", locality_aware(grid, seed), group_sizes(grid.num_tokens, steps))

    def judge(candidate: Candidate, measured: Measured, published: Measured) -> dict[str, Any]:
        nll, less = Estimate.of(measured.nll), Estimate.of(measured.nll - published.nll)
        return {**candidate._asdict(), **named("nll", nll), **named("minus_published", less)}

    published, *here = measure([usual, *plans.values()], first)
    ranked = sorted(zip(plans, here, strict=True), key=lambda pair: pair[1].nll.mean())
    candidates = [judge(*pair, published) for pair in ranked]
    best = ranked[0][0]
    published, there = measure([usual, plans[best]], second)
    sizes = str(list(plans[best].group_sizes))
    command = (
        f"python orders/run_lpd_order.py --img_size {grid.image_size} --vqgan_stride {grid.stride} "
        f"--group_sizes '{sizes}' --proximity_threshold {best.proximity:g} "
        f"--repulsion_threshold {best.repulsion:g} --seed {seed} --num_runs 60000 "
        f"--output_file orders/{grid.side}x{grid.side}_steps{steps}_best.npy"
    )
    how = {"group_sizes": sizes, "order_file_command": command}
    confirmed = judge(best, there, published) | how
    return {"steps": steps, "candidates": candidates, "best": confirmed}


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
