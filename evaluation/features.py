"""Feature extractors: the networks whose features the scores of `evaluation.metrics` compare.

They are torch-fidelity's, so that every score here is the one its own command would print: its
Inception (method section 9), and a small classifier of digits that the demo trains and registers
with it. Only Inception's distance is a FID; the demo's has another name everywhere it appears.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import os
import socket
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.hub
from torch import Tensor, nn

from evaluation.digits import DIGITS_EXTRACTOR
from evaluation.image_sources import ImageSource, share_of_batches
from hub.weights import read_checkpoint
from util import distributed
from util.device import plain_float32
from util.distributed import is_main
from util.errors import UserError
from util.logs import progress

logger = logging.getLogger(__name__)


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


if TYPE_CHECKING:
    from torch_fidelity import FeatureExtractorBase

WEIGHTS_FLAG = "--feature_extractor_weights"
# Longest silence of a server during the download of the weights, seconds.
NETWORK_TIMEOUT = 10.0


class ScoreName(NamedTuple):
    """What one result is called.

    Attributes:
        title: where people read it; the number of images follows it.
        key: in JSON and TensorBoard.
        note: follows the number of images, for people.
    """

    title: str
    key: str
    note: str = ""


@dataclass(frozen=True)
class ExtractorKind:
    """What one name of `--feature_extractor` means.

    Attributes:
        registered_name: torch-fidelity's name of the network.
        pool_layer: its features for all scores but the next two.
        logits_layer: its features for the score over classes.
        feature_dim: width D of `pool_layer`.
        image_size: the only side of image it takes, pixels; None for any.
        names: what its results are called: `fid`, `sfid`, `is`, `kid`, `precision`, `recall`, as
            far as it has them.
        spatial_layer: the module of which ADM's sFID takes the first channels, if there is one.
        spatial_channels, spatial_dim: how many channels, and width of them all.
    """

    registered_name: str
    pool_layer: str
    logits_layer: str
    feature_dim: int
    image_size: int | None
    names: Mapping[str, ScoreName]
    spatial_layer: str | None = None
    spatial_channels: int = 0
    spatial_dim: int = 0


KINDS = {
    "inception": ExtractorKind(
        registered_name="inception-v3-compat",
        pool_layer="2048",
        logits_layer="logits_unbiased",
        feature_dim=2048,
        image_size=None,
        names={
            "fid": ScoreName("FID", "fid"),
            "sfid": ScoreName("sFID", "sfid"),
            "is": ScoreName("IS", "inception_score"),
            "kid": ScoreName("KID", "kid"),
            "precision": ScoreName("Precision", "precision"),
            "recall": ScoreName("Recall", "recall"),
        },
        # TensorFlow calls it mixed_6/conv.
        spatial_layer="Mixed_6d.branch1x1",
        spatial_channels=7,
        spatial_dim=17 * 17 * 7,
    ),
    "digits": ExtractorKind(
        registered_name=DIGITS_EXTRACTOR,
        pool_layer="64",
        logits_layer="logits_unbiased",
        feature_dim=64,
        image_size=32,
        names={
            "fid": ScoreName("Frechet distance", "frechet_distance_digits", " (digit features)"),
            "is": ScoreName(
                "Inception-style score", "classifier_score_digits", " (digit classifier)"
            ),
            "kid": ScoreName("Kernel distance", "kernel_distance_digits", " (digit features)"),
            "precision": ScoreName("Precision", "precision_digits", " (digit features)"),
            "recall": ScoreName("Recall", "recall_digits", " (digit features)"),
        },
    ),
}
EXTRACTOR_NAMES = (*KINDS, "none")


@dataclass(frozen=True)
class FeatureExtractor:
    """A network ready to `extract` with.

    Attributes:
        kind: what it is, and the names of what its features measure.
        network: its weights, on `device`.
        device: where it runs.
        spatial: whether to extract the features of sFID too.
    """

    kind: ExtractorKind
    network: FeatureExtractorBase
    device: torch.device
    spatial: bool = False

    def digest(self) -> str:
        """Which network this is: sha256 (hex) over its name, layers and weights."""
        kind = self.kind
        found = hashlib.sha256(
            f"{kind.registered_name} {kind.pool_layer} {kind.spatial_layer} "
            f"{kind.spatial_channels}\n".encode()
        )
        for name, value in sorted(self.network.state_dict().items()):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return found.hexdigest()


@dataclass(frozen=True)
class Features:
    """Features of B images, in the images' order.

    Attributes:
        pool: (B, D) float32.
        logits: (B, C) float32, class scores without the bias.
        spatial: (B, E) float32, the features of sFID in ADM's order (row, column, channel).
    """

    pool: Tensor
    logits: Tensor
    spatial: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pool)

    def tensors(self) -> tuple[Tensor, ...]:
        """Those that are there; `Features(*tensors)` is the same again."""
        return tuple(part for part in (self.pool, self.logits, self.spatial) if part is not None)

    @classmethod
    def join(cls, parts: Sequence[Features]) -> Features:
        """All images of `parts`, one part after another."""
        return cls(*map(torch.cat, zip(*(part.tensors() for part in parts), strict=True)))

    def cpu(self) -> Features:
        """The same on the host."""
        return Features(*(part.cpu() for part in self.tensors()))


def build_extractor(
    name: str, weights: str | None, device: torch.device, spatial: bool = False
) -> FeatureExtractor | None:
    """The network `--feature_extractor` names, with its weights, on `device`.

    Args:
        name: one of `EXTRACTOR_NAMES`.
        weights: file of its weights; for Inception None means torch-fidelity's, from its cache or
            downloaded.
        device: where it runs.
        spatial: also extract the features of sFID, where the network has them.

    Returns:
        The extractor, or None for `none`.

    Raises:
        UserError: unknown name, no torch-fidelity, or weights that are missing, damaged or another
            network's.
    """
    if name == "none":
        return None
    if name not in KINDS:
        expected = ", ".join(EXTRACTOR_NAMES[:-1]) + f" or {EXTRACTOR_NAMES[-1]}"
        raise UserError(f"--feature_extractor: found {name!r}, expected {expected}")
    from evaluation.fidelity import URL_INCEPTION_V3, create_feature_extractor

    kind = KINDS[name]
    if weights is not None:
        path = Path(weights)
    elif name == "inception":
        path = _cached_inception_weights(URL_INCEPTION_V3)
    else:
        raise UserError(
            f"{WEIGHTS_FLAG}: not given, expected the file of the trained digits classifier "
            f"(--feature_extractor {name})"
        )
    # torch-fidelity unpickles the file it is given without restrictions: give it what a safe
    # read of the file returned, pickled anew.
    pickled = io.BytesIO()
    torch.save(read_checkpoint(path, WEIGHTS_FLAG), pickled)
    pickled.seek(0)
    try:
        network = create_feature_extractor(
            kind.registered_name,
            [kind.pool_layer, kind.logits_layer],
            cuda=False,
            feature_extractor_weights_path=pickled,
            verbose=False,
        )
    except (RuntimeError, ValueError, TypeError, AttributeError, UnpicklingError) as error:
        reason = textwrap.shorten(str(error), width=200)
        raise UserError(
            f"{WEIGHTS_FLAG}: {path} does not hold the weights of {kind.registered_name}: {reason}"
        ) from error
    spatial = spatial and kind.spatial_layer is not None
    return FeatureExtractor(kind, network.to(device), device, spatial)


def extract(extractor: FeatureExtractor, images: Tensor) -> Features:
    """Features of a batch of images.

    Args:
        extractor: from `build_extractor`.
        images: (B, S, S, 3) or (B, 3, S, S) uint8, any device.

    Returns:
        The features in the images' order, on the extractor's device.

    Raises:
        ValueError: images of another shape or type.
    """
    if (
        images.dtype != torch.uint8
        or images.ndim != 4
        or 3 not in (images.shape[1], images.shape[3])
    ):
        raise ValueError(
            f"found {images.dtype} images of shape {tuple(images.shape)}, "
            "expected uint8 (B, S, S, 3) or (B, 3, S, S)"
        )
    if images.shape[3] == 3:
        images = images.permute(0, 3, 1, 2)
    # The scores are defined by the float32 network, also inside a bfloat16 evaluation.
    with (
        torch.no_grad(),
        plain_float32(extractor.device),
        _spatial_features(extractor) as spatial,
    ):
        found = extractor.network(images.to(extractor.device))
    by_name = extractor.network.convert_features_tuple_to_dict(found)
    kind = extractor.kind
    return Features(by_name[kind.pool_layer], by_name[kind.logits_layer], *spatial)


@contextmanager
def _spatial_features(extractor: FeatureExtractor) -> Iterator[list[Tensor]]:
    """A list that gets the features of sFID, (B, E) float32, of what the network does meanwhile."""
    found: list[Tensor] = []
    if not extractor.spatial:
        yield found
        return
    kind = extractor.kind

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # ADM's statistics are TensorFlow's: channels come last.
        channels = output[:, : kind.spatial_channels].permute(0, 2, 3, 1)
        found.append(channels.flatten(1).float())

    hook = extractor.network.get_submodule(kind.spatial_layer).register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def _cached_inception_weights(url: str) -> Path:
    """torch-fidelity's own copy of the Inception weights, downloaded if it is not there yet."""
    file_name = url.rsplit("/", maxsplit=1)[-1]
    path = Path(torch.hub.get_dir(), "checkpoints", file_name)
    if path.exists():
        return path
    logger.info("downloading %s to %s", url, path)
    arriving = path.with_name(f"{file_name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(NETWORK_TIMEOUT):
            torch.hub.download_url_to_file(url, str(arriving), progress=is_main())
        read_checkpoint(arriving, WEIGHTS_FLAG)  # a cut-off download must not stay in the cache
        arriving.replace(path)
    except (OSError, http.client.HTTPException, UserError) as error:
        reason = "what arrived is damaged" if isinstance(error, UserError) else error
        raise UserError(
            f"{WEIGHTS_FLAG}: the Inception weights are not at {path} and could not be downloaded "
            f"({getattr(error, 'reason', reason)}); expected the file {file_name}, "
            "or --feature_extractor none"
        ) from error
    finally:
        arriving.unlink(missing_ok=True)
    return path


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Let connections opened in the block fail after `seconds` of silence, not never."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
