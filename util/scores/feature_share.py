"""Features by all processes: each of its share of the images, gathered once on rank 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from util import distributed
from util.errors import UserError
from util.logs import progress
from util.scores.features import FeatureExtractor, Features, extract
from util.scores.image_sources import ImageSource, share_of_batches


class FeatureShare(NamedTuple):
    """One process's part of the images.

    Attributes:
        ids: (n,) int64 places among all images.
        features: of these images, on the host; None for no images, or where nothing extracts.
    """

    ids: np.ndarray
    features: Features | None

    @classmethod
    def join(cls, ids: Sequence[np.ndarray], features: Sequence[Features]) -> FeatureShare:
        """All batches of `ids` and `features`, in their order."""
        return cls(_concatenate(ids), Features.join(features) if features else None)


def extract_batches(
    source: ImageSource, extractor: FeatureExtractor, batch_size: int, num_workers: int
) -> Iterator[tuple[np.ndarray, Features]]:
    """This process's share of a source, batch by batch, with a progress bar on rank 0.

    Yields:
        Places (B,) int64 among all images, and their features, on the extractor's device.

    Raises:
        UserError: an image cannot be read.
    """
    mine = sum(map(len, share_of_batches(len(source), batch_size)))
    with progress(total=mine, desc=f"features of {source.path.name}", unit="image") as bar:
        for ids, images in source.share(batch_size, num_workers):
            yield ids, extract(extractor, images)
            bar.update(len(ids))


def extract_share(
    source: ImageSource, extractor: FeatureExtractor, batch_size: int, num_workers: int
) -> FeatureShare:
    """This process's share of a source, on the host; see `extract_batches`."""
    ids, features = [], []
    for batch, found in extract_batches(source, extractor, batch_size, num_workers):
        ids.append(batch)
        features.append(found.cpu())
    return FeatureShare.join(ids, features)


def gather_features(shares: Sequence[FeatureShare]) -> Features | None:
    """The features of all processes' shares in the order of their ids, on rank 0; None elsewhere.

    They travel one kind after another, so that rank 0 holds little more than it returns.

    Args:
        shares: this process's.

    Raises:
        UserError: two of the shares hold the same image, or none holds any.
    """
    kept = [share for share in shares if share.features is not None]
    ids = distributed.gather_to_main(_concatenate([share.ids for share in kept]))
    widths = max(len(share.features.tensors()) for share in kept) if kept else 0
    parts = []
    for part in range(max(distributed.gather(widths))):
        mine = [share.features.tensors()[part] for share in kept]
        gathered = distributed.gather_to_main(torch.cat(mine) if mine else None)
        parts.append(_in_order(ids, gathered) if ids is not None else None)
        del mine, gathered
    if ids is None:
        return None
    if len(np.unique(np.concatenate(ids))) != sum(map(len, ids)) or not parts:
        raise UserError("found an image twice among the processes' shares, or none at all")
    return Features(*parts)


def _concatenate(ids: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=np.int64), *ids])


def _in_order(ids: Sequence[np.ndarray], parts: list[torch.Tensor | None]) -> torch.Tensor:
    """Rows by the rank of their ids: (n, D) of all `parts`, which it empties."""
    places = np.argsort(np.argsort(np.concatenate(ids), kind="stable"), kind="stable")
    found = [part for part in parts if part is not None]
    whole = torch.empty(len(places), *found[0].shape[1:], dtype=found[0].dtype)
    start = 0
    for rank, part in enumerate(parts):
        if part is not None:
            whole[torch.from_numpy(places[start : start + len(part)])] = part
            start += len(part)
            parts[rank] = None
    return whole
