"""Feature extractors: the networks whose features the scores of `evaluation.metrics` compare.

They are torch-fidelity's, so every score is the one its own command would print: its Inception
(method section 9) and the demo's digits classifier, whose distance is no FID and not called one.
"""

import hashlib
import http.client
import io
import logging
import pickle
import socket
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.hub
from torch import Tensor, nn

from evaluation.image_sources import ImageSource, share_of_batches
from hub.weights import read_checkpoint
from util import distributed
from util.device import plain_float32
from util.errors import UserError
from util.logs import progress

logger = logging.getLogger(__name__)

WEIGHTS_FLAG = "--feature_extractor_weights"
# Longest silence of a server during the download of the weights, seconds.
NETWORK_TIMEOUT = 10.0


class ScoreName(NamedTuple):
    """What one result is called."""

    title: str  # by people; the number of images follows, then the note
    key: str  # in JSON
    note: str = ""


@dataclass(frozen=True)
class ExtractorKind:
    """What one name of `--feature_extractor` means."""

    registered_name: str  # torch-fidelity's
    pool_layer: str  # its features for all scores but `is` and `sfid`
    dims: Mapping[str, int]  # width of the features `pool` and, if it has them, `spatial`
    names: Mapping[str, ScoreName]  # of all results that it has
    image_size: int | None = None  # the only side of image it takes, pixels
    # The features of sFID are the first channels of this module.
    spatial_layer: str | None = None
    spatial_channels: int = 0


KINDS = {
    "inception": ExtractorKind(
        "inception-v3-compat",
        pool_layer="2048",
        dims={"pool": 2048, "spatial": 17 * 17 * 7},
        names={
            "fid": ScoreName("FID", "fid"),
            "sfid": ScoreName("sFID", "sfid"),
            "is": ScoreName("IS", "inception_score"),
            "kid": ScoreName("KID", "kid"),
            "precision": ScoreName("Precision", "precision"),
            "recall": ScoreName("Recall", "recall"),
        },
        spatial_layer="Mixed_6d.branch1x1",  # TensorFlow calls it mixed_6/conv
        spatial_channels=7,
    ),
    "digits": ExtractorKind(
        "lpd-digits",
        pool_layer="64",
        dims={"pool": 64},
        names={
            "fid": ScoreName("Frechet distance", "frechet_distance_digits", " (digit features)"),
            "is": ScoreName(
                "Inception-style score", "classifier_score_digits", " (digit classifier)"
            ),
            "kid": ScoreName("Kernel distance", "kernel_distance_digits", " (digit features)"),
            "precision": ScoreName("Precision", "precision_digits", " (digit features)"),
            "recall": ScoreName("Recall", "recall_digits", " (digit features)"),
        },
        image_size=32,
    ),
}


@dataclass(frozen=True)
class FeatureExtractor:
    """A network on `device`; `spatial` says whether to extract the features of sFID too."""

    kind: ExtractorKind
    network: nn.Module  # torch-fidelity's
    device: torch.device
    spatial: bool = False

    def digest(self) -> str:
        """Hash name, layers and weights: sha256 (hex)."""
        kind = self.kind
        layers = f"{kind.pool_layer} {kind.spatial_layer} {kind.spatial_channels}"
        sha256 = hashlib.sha256(f"{kind.registered_name} {layers}\n".encode())
        for name, value in sorted(self.network.state_dict().items()):
            sha256.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            sha256.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return sha256.hexdigest()


@dataclass(frozen=True)
class Features:
    """Features of B images, in the images' order."""

    pool: Tensor  # (B, D) float32
    logits: Tensor  # (B, C) float32, class scores without the bias
    spatial: Tensor | None = None  # (B, E) float32, of sFID in ADM's order: row, column, channel

    def __len__(self) -> int:
        return len(self.pool)

    def tensors(self) -> tuple[Tensor, ...]:
        """Those that are there; `Features(*tensors)` is the same again."""
        return tuple(part for part in (self.pool, self.logits, self.spatial) if part is not None)

    def cpu(self) -> "Features":
        return Features(*(part.cpu() for part in self.tensors()))


# Ids (B,) int64 of some images, and their features on the host, where something extracts them.
FeatureBatch = tuple[np.ndarray, Features | None]


def build_extractor(
    name: str, weights: str | None, device: torch.device, spatial: bool = False
) -> FeatureExtractor | None:
    """Load the network that `--feature_extractor` names; None for `none`.

    Without a file of `weights` Inception's are torch-fidelity's, from its cache or downloaded.
    `spatial` asks for the features of sFID, where the network has them.
    """
    if name == "none":
        return None
    if name not in KINDS:
        raise UserError(f"--feature_extractor: found {name!r}, expected {', '.join(KINDS)} or none")
    from evaluation import fidelity

    kind = KINDS[name]
    if weights is None and name == "inception":
        weights = _cached_inception_weights(fidelity.URL_INCEPTION_V3)
    if weights is None:
        raise UserError(
            f"{WEIGHTS_FLAG}: not given, expected the file of the trained digits classifier "
            f"(--feature_extractor {name})"
        )
    # torch-fidelity unpickles the file it is given without restrictions: give it what a safe
    # read of the file returned, pickled anew.
    pickled = io.BytesIO()
    torch.save(read_checkpoint(weights, WEIGHTS_FLAG), pickled)
    pickled.seek(0)
    try:
        network = fidelity.create_feature_extractor(
            kind.registered_name,
            [kind.pool_layer, "logits_unbiased"],
            cuda=False,
            feature_extractor_weights_path=pickled,
            verbose=False,
        )
    except (RuntimeError, ValueError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        found = f"{weights} does not hold the weights of {kind.registered_name}"
        reason = textwrap.shorten(str(error), width=200)
        raise UserError(f"{WEIGHTS_FLAG}: {found}: {reason}") from error
    spatial = spatial and kind.spatial_layer is not None
    return FeatureExtractor(kind, network.to(device), device, spatial)


def _cached_inception_weights(url: str) -> Path:
    """Return torch-fidelity's own copy of the Inception weights, downloaded if need be."""
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", maxsplit=1)[-1])
    if path.exists():
        return path
    logger.info("downloading %s to %s", url, path)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)  # torch's download would wait for ever
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=distributed.is_main())
        read_checkpoint(path, WEIGHTS_FLAG)
    except (OSError, http.client.HTTPException, UserError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(error, UserError):
            path.unlink(missing_ok=True)  # a cut-off download must not stay in the cache
            reason = "what arrived is damaged"
        raise UserError(
            f"{WEIGHTS_FLAG}: the Inception weights are not at {path} and could not be downloaded "
            f"({reason}); expected the file {path.name}, or --feature_extractor none"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return path


def extract(extractor: FeatureExtractor, images: Tensor) -> Features:
    """Extract the features of (B, S, S, 3) or (B, 3, S, S) uint8, on the extractor's device."""
    if images.shape[3] == 3:
        images = images.permute(0, 3, 1, 2)
    kind, network = extractor.kind, extractor.network
    spatial: list[Tensor] = []

    def keep_spatial(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # ADM's statistics are TensorFlow's: channels come last.
        channels = output[:, : kind.spatial_channels].permute(0, 2, 3, 1)
        spatial.append(channels.flatten(1).float())

    hook = nullcontext()
    if extractor.spatial:
        hook = network.get_submodule(kind.spatial_layer).register_forward_hook(keep_spatial)
    # The scores are defined by the float32 network, also inside a bfloat16 evaluation.
    with torch.no_grad(), plain_float32(extractor.device), hook:
        pool, logits = network(images.to(extractor.device))
    return Features(pool, logits, *spatial)


def extract_share(
    source: ImageSource, extractor: FeatureExtractor, batch_size: int, num_workers: int
) -> Iterator[FeatureBatch]:
    """Extract this process's share of a source: places (B,) int64 and features on the device."""
    mine = sum(map(len, share_of_batches(len(source), batch_size)))
    with progress(total=mine, desc=f"features of {source.path.name}", unit="image") as bar:
        for ids, images in source.share(batch_size, num_workers):
            yield ids, extract(extractor, images)
            bar.update(len(ids))


def ids_of(batches: Sequence[FeatureBatch]) -> np.ndarray:
    """Concatenate the ids of batches, of which there may be none."""
    return np.concatenate([np.empty(0, dtype=np.int64), *(ids for ids, _ in batches)])


def gather_features(batches: Sequence[FeatureBatch]) -> Features | None:
    """Gather the features of all processes' batches, by id, on rank 0; None elsewhere."""
    batches = [batch for batch in batches if batch[1] is not None]
    by_part = zip(*(features.tensors() for _, features in batches), strict=True)
    mine = [torch.cat(part) for part in by_part]
    ids = distributed.gather_to_main(ids_of(batches))
    parts = []
    for number in range(max(distributed.gather(len(mine)))):  # all at once would need much memory
        gathered = distributed.gather_to_main(mine[number] if mine else None)
        if gathered is not None:
            whole = torch.cat([part for part in gathered if part is not None])
            parts.append(whole[torch.from_numpy(np.argsort(np.concatenate(ids)))])
    return Features(*parts) if ids is not None else None
