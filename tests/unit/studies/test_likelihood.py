"""Measuring and searching, on images with nothing to gain from an order."""

from __future__ import annotations

import ast
import dataclasses
import math
import shlex
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from models.likelihood import token_nll
from orders.plan import GenerationPlan
from orders.sources import locality_aware, parse_order
from studies import likelihood as order_study
from studies import search as order_search
from studies.likelihood import Estimate, Measured, Setting, images_digest, measure
from studies.search import (
    REPULSION_ALONE,
    Candidate,
    all_candidates,
    halves,
    order_file_command,
    search,
)
from tests.unit.models.small import NUM_TOKENS, VOCAB, small_lpd
from util import distributed
from util.errors import UserError
from util.geometry import TokenGrid

GRID = TokenGrid(16, 4, VOCAB)
IMAGES = 11
IDS = np.arange(IMAGES)


@dataclass
class Cache:
    """Random tokens; counts how often they are read."""

    labels: np.ndarray = dataclasses.field(default_factory=lambda: IDS % 5)
    damaged: bool = False
    reads: int = 0

    def read(self, indices: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        if self.damaged:
            raise UserError("--cached_path: it is damaged")
        assert not flipped.any()
        self.reads += 1
        return tokens()[indices]


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(VOCAB, size=(IMAGES, NUM_TOKENS))


def setting(text: str, sizes: list[int]) -> Setting:
    return Setting(text, parse_order(text, GRID, 0, IMAGES), tuple(sizes))


SIZES = [1, 3, 5, 7]
SETTINGS = [setting(text, sizes) for sizes in (SIZES, [1] * 16) for text in ("lpd", "raster")]


def study(settings: list[Setting] = SETTINGS, ids: np.ndarray = IDS, **options) -> list[Measured]:
    return measure(small_lpd(), Cache(), settings, ids, **{"batch_size": 4, **options})


def test_it_is_the_likelihood_by_image_and_step() -> None:
    labels = torch.from_numpy(IDS % 5)
    for result, one in zip(study(), SETTINGS, strict=True):
        orders = one.orders(IDS, one.group_sizes)
        by_token, alone = (
            token_nll(small_lpd(), torch.from_numpy(tokens()), labels, plan).double().numpy()
            for plan in (
                GenerationPlan.build(orders, sizes, NUM_TOKENS)
                for sizes in (one.group_sizes, [1] * NUM_TOKENS)
            )
        )
        stops = np.cumsum(one.group_sizes)[:-1]
        parts = np.split(by_token, stops, axis=1)
        by_step = np.stack([part.sum(axis=1) for part in parts], axis=1)
        np.testing.assert_allclose(result.by_step, by_step, rtol=1e-5)
        np.testing.assert_allclose(result.price, (by_token - alone).sum(axis=1), atol=1e-4)
        # The network does make a difference.
        assert (np.abs(result.price).max() > 0.1) == (result.setting.steps < NUM_TOKENS)


def test_one_token_at_a_time_has_no_price() -> None:
    for found in study()[2:]:
        assert (found.price_by_step == 0).all()


def test_images_are_read_once_whatever_is_compared() -> None:
    cache = Cache()
    measure(small_lpd(), cache, SETTINGS, IDS, batch_size=4)
    assert cache.reads == 3


def test_a_chosen_image_keeps_its_order() -> None:
    some = np.array([1, 4, 9])
    for whole, part in zip(study(), study(ids=some), strict=True):
        np.testing.assert_allclose(part.by_step, whole.by_step[some], rtol=1e-5)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_the_number_of_processes_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    alone = study()
    shares: list = []

    def gather(share: list) -> list:
        shares.append(share)
        if len(shares) < processes:
            raise InterruptedError("the later processes have not measured yet")
        return shares

    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    monkeypatch.setattr(distributed, "gather", gather)
    monkeypatch.setattr(distributed, "fail_together", lambda work: work())
    for number in range(processes - 1):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        with pytest.raises(InterruptedError):
            study()
    monkeypatch.setattr(distributed, "rank", lambda: processes - 1)
    for mine, theirs in zip(alone, study(), strict=True):
        assert np.array_equal(mine.by_step, theirs.by_step)
        assert np.array_equal(mine.one_by_one, theirs.one_by_one)


def test_a_digest_tells_images_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = images_digest(Cache(), IDS)
    assert len(whole) == 64 and whole == images_digest(Cache(), IDS)
    others = {
        "fewer": images_digest(Cache(), IDS[:-1]),
        "turned round": images_digest(Cache(), IDS[::-1]),
        "other classes": images_digest(Cache(labels=(IDS + 1) % 5), IDS),
    }
    assert len({whole, *others.values()}) == 4
    # The last token of the last image; and however many images are read together.
    changed = tokens()
    changed[-1, -1] = (changed[-1, -1] + 1) % VOCAB
    cache = Cache()
    cache.read = lambda indices, flipped: changed[indices]
    assert images_digest(cache, IDS) != whole
    monkeypatch.setattr(order_study, "_HASHED_TOGETHER", 4)
    assert images_digest(Cache(), IDS) == whole


def test_bfloat16_is_near() -> None:
    exact, near = study()[0].nll, study(bf16=True)[0].nll
    assert not np.array_equal(exact, near)
    np.testing.assert_allclose(near, exact, rtol=0.02)


def test_damage_stops_it() -> None:
    with pytest.raises(UserError, match="it is damaged"):
        measure(small_lpd(), Cache(damaged=True), SETTINGS, IDS, batch_size=4)


def test_an_estimate_has_the_standard_error_of_a_mean() -> None:
    found = Estimate.of(np.array([1.0, 2.0, 3.0, 6.0]))
    assert found.mean == 3
    assert found.se == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3) / 2)
    assert str(found) == "3.00 ± 1.08"


def test_halves_are_halves() -> None:
    ids = np.arange(0, 22, 2)
    first, second = halves(ids, seed=1)
    assert len(first) == 5 and sorted([*first, *second]) == ids.tolist()
    assert (np.diff(first) > 0).all() and (np.diff(second) > 0).all()
    assert not np.array_equal(first, halves(ids, seed=2)[0])


def test_a_search_finds_the_best_and_measures_it_on_other_images() -> None:
    seen: list[tuple[int, list[int]]] = []

    def costs(settings: list[Setting], ids: np.ndarray) -> list[Measured]:
        """Repulsion 2 with sizes of power 2 is best, by 3 nats of which 1 is luck."""
        seen.append((len(settings), ids.tolist()))
        lucky = len(seen) == 1

        def cost(setting: Setting) -> float:
            good = setting.order == "lpd:2:1" and setting.sizes_name == "2"
            return 20.0 - good * (2 + lucky)

        return [
            Measured(s, np.full((len(ids), s.steps), cost(s) / s.steps), None) for s in settings
        ]

    candidates = all_candidates([0, 1, 2], [0, 1], ["rule", "2"])
    found = search(costs, candidates, GRID, 4, 6, IDS)
    assert [count for count, _ in seen] == [13, 2]  # all and the published; the best and that
    assert sorted(seen[0][1] + seen[1][1]) == IDS.tolist()
    best, there = found.candidates[0]
    assert best == Candidate(2, 1, "2")
    assert there.nll.mean() == pytest.approx(17) and found.confirmed.nll.mean() == pytest.approx(18)
    lines = order_search.table(found, rows=2)
    assert lines[3] == "| searched | 2 | 1 | 2 | 17.00 ± 0.00 | -3.00 ± 0.00 |"
    assert lines[-1] == "| confirmed | 2 | 1 | 2 | 18.00 ± 0.00 | -2.00 ± 0.00 |"
    # All in the orders that the seed names, as its order file is.
    for setting in (found.confirmed.setting, found.usual.setting):
        again = parse_order(setting.order, GRID, 6, IMAGES)
        made = [orders(IDS, setting.group_sizes) for orders in (setting.orders, again)]
        assert np.array_equal(*made)
    command = order_file_command(found, GRID, seed=6)
    words = shlex.split(command)
    assert words[:2] == ["python", "orders/run_lpd_order.py"]
    flags = dict(zip(words[2::2], words[3::2], strict=True))
    assert flags["--repulsion_threshold"] == "2" and flags["--proximity_threshold"] == "1"
    assert ast.literal_eval(flags["--group_sizes"]) == list(there.setting.group_sizes)
    grid = {"--img_size": "16", "--vqgan_stride": "4", "--seed": "6"}
    assert grid.items() <= flags.items()
    entry = order_search.entry(found, command)
    assert entry["best"]["minus_published"] == pytest.approx(-2)
    assert len(entry["candidates"]) == 12


def test_repulsion_alone_is_one_candidate_for_each_shape() -> None:
    found = all_candidates([0, 2], [6.8, REPULSION_ALONE, 100], ["rule", "2"])
    assert found == [
        Candidate(0, 6.8, "rule"),
        Candidate(0, 6.8, "2"),
        Candidate(0, REPULSION_ALONE, "rule"),
        Candidate(0, REPULSION_ALONE, "2"),
        Candidate(2, 6.8, "rule"),
        Candidate(2, 6.8, "2"),
    ]
    # Whatever the thresholds say, these are the same orders; a little lower they are not.
    grid, sizes = TokenGrid(64, 4, VOCAB), [1, 200, 40, 15]

    def orders(repulsion: float, proximity: float) -> np.ndarray:
        return locality_aware(grid, 0, repulsion, proximity)(IDS, sizes)

    alone = orders(0, REPULSION_ALONE)
    for thresholds in ((2, REPULSION_ALONE), (0, 100), (4, 1e9)):
        assert np.array_equal(orders(*thresholds), alone)
    assert not np.array_equal(orders(0, 6.8), alone)
