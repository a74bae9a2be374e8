"""What an epoch sees depends on the seed, the epoch and the sample alone."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.batches import Batch, CachedTokens, epoch_batches, send_ahead, steps_per_epoch
from dataset.token_cache import open_cache
from dataset.write_cache import write_index, write_shard
from util import distributed
from util.errors import UserError
from util.geometry import TokenGrid

CPU = torch.device("cpu")
OPTIONS = dict(seed=3, flip_prob=0.5, label_drop_prob=0.2, device=CPU)


class Numbered:
    """A source whose first token tells the sample and whose second tells the flip."""

    num_samples, num_tokens = 50, 9

    def read(self, batches: np.ndarray, flipped: np.ndarray) -> Iterator[tuple]:
        for indices, flips in zip(batches, flipped, strict=True):
            tokens = torch.zeros(len(indices), self.num_tokens, dtype=torch.int64)
            tokens[:, 0] = torch.from_numpy(indices)
            tokens[:, 1] = torch.from_numpy(flips).long()
            yield tokens, torch.from_numpy(indices % 5)


def epoch(number: int = 0, batch_size: int = 8, source=None, **changes) -> list[Batch]:
    return list(epoch_batches(source or Numbered(), number, batch_size, **{**OPTIONS, **changes}))


def by_sample(batches: list[Batch]) -> dict[int, tuple]:
    """Sample -> (flip, order, drop)."""
    return {
        int(tokens[0]): (int(tokens[1]), tuple(order.tolist()), bool(drop))
        for batch in batches
        for tokens, order, drop in zip(batch.tokens, batch.orders, batch.label_drop, strict=True)
    }


def test_an_epoch_visits_samples_once_and_in_another_order_than_the_next() -> None:
    first, second = epoch(0), epoch(1)
    seen = [int(sample) for batch in first for sample in batch.tokens[:, 0]]
    assert len(seen) == len(set(seen)) == 48 and set(seen) <= set(range(50))
    assert seen != [int(sample) for batch in second for sample in batch.tokens[:, 0]]
    for batch in first:
        assert torch.equal(batch.labels, batch.tokens[:, 0] % 5)
        assert torch.equal(batch.orders.sort(dim=1).values, torch.arange(9).expand(8, 9))
    # What is drawn for a sample depends on the epoch, not on the batch.
    small, large, later = by_sample(first), by_sample(epoch(batch_size=24)), by_sample(second)
    assert len(small.keys() & large.keys()) >= 46
    assert all(small[sample] == large[sample] for sample in small.keys() & large.keys())
    assert any(small[sample] != later[sample] for sample in small.keys() & later.keys())


def test_processes_share_the_global_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = epoch(batch_size=8)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(epoch(batch_size=4))
    for one, *parts in zip(whole, *shares, strict=True):
        for expected, pair in zip(one, zip(*parts, strict=True), strict=True):
            assert torch.equal(expected, torch.cat(pair))


def test_raster_orders_replace_the_random_ones_and_nothing_else() -> None:
    random, raster = by_sample(epoch()), by_sample(epoch(order="raster"))
    assert {order for _, order, _ in raster.values()} == {tuple(range(9))}
    for sample, (flip, _, drop) in raster.items():
        assert (flip, drop) == random[sample][::2]


def test_flips_and_drops_are_as_frequent_as_asked_for() -> None:
    draws = [draw for number in range(40) for draw in by_sample(epoch(number)).values()]
    for draw, share in ((0, OPTIONS["flip_prob"]), (2, OPTIONS["label_drop_prob"])):
        bound = 4.5 * (share * (1 - share) / len(draws)) ** 0.5
        assert np.mean([one[draw] for one in draws]) == pytest.approx(share, abs=bound)
    for share in (0.0, 1.0):
        assert {flip for flip, _, _ in by_sample(epoch(flip_prob=share)).values()} == {share}


def test_steps_per_epoch() -> None:
    assert (steps_per_epoch(50, 8, 2), steps_per_epoch(16, 8, 2)) == (3, 1)
    with pytest.raises(ValueError, match="found 8 on 2 processes, expected at most 7"):
        steps_per_epoch(15, 8, 2)


def test_batches_of_a_cache_are_these(tmp_path: Path) -> None:
    """The same seed gives the same batches in every version: interrupted runs depend on it."""
    tokens = np.arange(50 * 2 * 16).reshape(50, 2, 16) % 1000
    count = write_shard(tmp_path, 0, tokens, np.arange(50) % 2, 1000)
    write_index(tmp_path, TokenGrid(16, 4, 1000), "f", ("a", "b"), [count])
    digest = hashlib.sha256()
    for number in (0, 7):
        for batch in epoch(number, source=CachedTokens(open_cache(tmp_path), CPU)):
            for tensor in batch:
                digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest() == "8e0ecf88a690dcbb6c3feb13020d1aa48388817527f7cc44d7e46c8392b6d250"


def test_stopping_early_ends_the_threads_and_errors_come_through() -> None:
    class Failing(Numbered):
        def read(self, batches: np.ndarray, flipped: np.ndarray) -> Iterator[tuple]:
            yield from list(super().read(batches[:2], flipped[:2]))
            raise UserError("the cache has gone")

    before = threading.active_count()
    batches = epoch_batches(Numbered(), 0, 8, **OPTIONS)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
    with pytest.raises(UserError, match="has gone"):
        epoch(source=Failing())
    assert threading.active_count() == before


@pytest.mark.parametrize("count", [0, 1, 20])
def test_a_few_are_made_ahead_in_a_thread(count: int) -> None:
    makers, made = set(), []

    def items() -> Iterator[tuple[np.ndarray]]:
        for number in range(count):
            makers.add(threading.current_thread())
            made.append(number)
            yield (np.full(1, number),)

    before = threading.active_count()
    for taken, (number,) in enumerate(send_ahead(items(), CPU, depth=3)):
        assert number == taken and len(made) <= taken + 1 + 3
    assert made == list(range(count))
    assert threading.current_thread() not in makers
    assert threading.active_count() == before
