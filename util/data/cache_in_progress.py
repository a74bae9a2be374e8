"""A token cache while several processes write it: what is there, what is left, how it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from util import distributed
from util.data.cache_writer import (
    Shard,
    drop_if_empty,
    names_digest,
    plan_shards,
    read_shard,
    take_up,
    write_index,
    write_shard,
)
from util.data.image_folder import ImageList
from util.errors import UserError, blame
from util.geometry import TokenGrid


@dataclass
class CacheInProgress:
    """The shards of a cache and which of them are done; the same on every process.

    Attributes:
        path: the cache folder.
        grid: what the tokens are.
        fingerprint, precision: of the tokenizer, and of the arithmetic it encodes with.
        shards: for every shard its batches, each an array of image indices.
        found: shards that an interrupted run of the same settings left whole.
        written: shards of this run, on this process.
    """

    path: Path
    grid: TokenGrid
    fingerprint: str
    precision: str
    shards: list[list[np.ndarray]]
    found: list[Shard]
    written: list[Shard] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        path: Path,
        images: ImageList,
        grid: TokenGrid,
        fingerprint: str,
        precision: str,
        batch_size: int,
        skip_bad: bool,
    ) -> CacheInProgress:
        """Plan a cache, or take up the unfinished one of these settings in the folder.

        Args:
            path: an existing folder.
            images: what the cache is made from.
            grid, fingerprint, precision: as above.
            batch_size: images encoded at a time.
            skip_bad: whether a shard may hold fewer images than were planned.

        Raises:
            UserError: on all processes, if the folder holds shards of other settings.
        """
        settings = {
            **asdict(grid),
            "fingerprint": fingerprint,
            "precision": precision,
            "batch_size": batch_size,
            "images": names_digest(images.paths, images.labels),
        }
        shards = _plan_or_take_up(path, settings, len(images))
        found = _whole_shards(path, grid, shards, skip_bad)
        return cls(path, grid, fingerprint, precision, shards, found)

    @property
    def to_do(self) -> list[int]:
        """Numbers of the shards that are not there yet."""
        done = {shard.number for shard in self.found}
        return [number for number in range(len(self.shards)) if number not in done]

    def write(self, number: int, tokens: np.ndarray, labels: np.ndarray) -> None:
        """Keep a shard: tokens (n, 2, N) and classes (n,) of its images, both integers."""
        with blame(f"--cached_path: {self.path}"):
            shard = write_shard(self.path, number, tokens, labels, self.grid.vocab_size)
        self.written.append(shard)

    def finish(self, classes: Sequence[str]) -> tuple[int, int]:
        """Make one cache of all processes' shards.

        Returns:
            Images in it, and how many of them this run encoded.

        Raises:
            UserError: on all processes, if there is no image or a file cannot be written.
        """
        new = list(chain.from_iterable(distributed.gather(self.written)))
        shards = sorted(self.found + new, key=lambda shard: shard.number)
        distributed.fail_together(lambda: self._write_index(classes, shards))
        return _count(shards), _count(new)

    def _write_index(self, classes: Sequence[str], shards: Sequence[Shard]) -> None:
        if not _count(shards):
            raise UserError("none of the images can be decoded, expected at least one")
        if distributed.is_main():
            with blame(f"--cached_path: {self.path}"):
                write_index(self.path, self.grid, self.fingerprint, classes, shards, self.precision)

    def give_up(self) -> None:
        """Clean up after a failure that all processes know of, so that none writes any more."""
        if distributed.is_main():
            drop_if_empty(self.path)


def _count(shards: Sequence[Shard]) -> int:
    return sum(shard.count for shard in shards)


def _plan_or_take_up(
    path: Path, settings: dict[str, Any], num_images: int
) -> list[list[np.ndarray]]:
    """The batches of every shard, as in the unfinished cache of these settings if there is one."""
    plan = partial(plan_shards, num_images, settings["batch_size"], distributed.world_size())

    def settle() -> int:
        if not distributed.is_main():
            return 0
        with blame(f"--cached_path: {path}"):
            return take_up(path, settings, len(plan()[0]))

    size = distributed.gather(distributed.fail_together(settle))[0]
    return plan(batches_per_shard=size)


def _whole_shards(
    path: Path, grid: TokenGrid, shards: list[list[np.ndarray]], skip_bad: bool
) -> list[Shard]:
    """Shards of an earlier run that are whole; the processes share the reading."""
    found = []
    for number in range(distributed.rank(), len(shards), distributed.world_size()):
        parts = read_shard(path, number, grid)
        # A run that skips bad images may have left some out.
        if parts is not None and (skip_bad or len(parts[1]) == sum(map(len, shards[number]))):
            found.append(Shard(number, len(parts[1])))
    return list(chain.from_iterable(distributed.gather(found)))
