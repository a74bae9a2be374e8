"""What samples are compared with: read from a file, or made of images and kept for next time."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
import torch
import torch.hub
from torch import Tensor

from evaluation.features import (
    ExtractorKind,
    FeatureExtractor,
    Features,
    FeatureShare,
    extract_batches,
    gather_features,
)
from evaluation.image_sources import SAMPLES, ImageSource, open_images
from evaluation.metrics import Moments, Reference, Statistics
from util import distributed
from util.arrays import MAX_UNPACKED_BYTES, names_in_npz, read_npz
from util.errors import UserError, blame, describe_os_error

logger = logging.getLogger(__name__)

# Increase it when the same images come to give other numbers.
CACHE_FORMAT = 1
_STATISTICS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
PARTS = (*_STATISTICS, "features")


@dataclass(frozen=True)
class ReferencePlan:
    """Where a `Reference` comes from; checked, not yet made.

    Attributes:
        path: the file or folder.
        needs: its parts that are wanted, among `PARTS`.
        known: those that a file held.
        source: images to make the others of, if there are any others.
    """

    path: Path
    needs: frozenset[str]
    known: Reference
    source: ImageSource | None

    @classmethod
    def of_images(cls, source: ImageSource, needs: Collection[str]) -> ReferencePlan:
        """All of `needs` from images."""
        return cls(source.path, frozenset(needs), Reference(), source)

    def load(
        self, extractor: FeatureExtractor, batch_size: int = 64, num_workers: int = 0
    ) -> Reference | None:
        """All parts, on rank 0; None elsewhere. All processes call it: each reads its share.

        What is made of images is kept in `cache_folder()`, under the content of the images and of
        the network.

        Args:
            extractor: what the samples' features come from, with `spatial` if that is needed.
            batch_size, num_workers: how images are read.

        Raises:
            UserError: on all processes, if any cannot read an image.
        """
        if self.source is None:
            return self.known if distributed.is_main() else None
        extractor = replace(extractor, spatial="spatial" in self.needs)
        stem = cache_folder() / _cache_key(self.source, extractor)
        known = self.known
        if distributed.is_main():
            known = _read_cache(stem, known, self._missing(known), extractor.kind)
        missing = distributed.gather(self._missing(known))[0]
        if missing:
            made = _make(self.source, extractor, missing, batch_size, num_workers)
            if made is None:
                return None
            _write_cache(stem, made)
            known = replace(known, **{part: getattr(made, part) for part in missing})
        return known if distributed.is_main() else None

    def _missing(self, known: Reference) -> frozenset[str]:
        return frozenset(part for part in self.needs if getattr(known, part) is None)


def open_reference(
    path: str | Path,
    kind: ExtractorKind,
    image_size: int,
    needs: Collection[str] = ("pool",),
    flag: str = "--fid_stats",
) -> ReferencePlan:
    """Check what samples are to be compared with.

    Args:
        path: an .npz with `mu` (D,) and `sigma` (D, D), `mu_s` and `sigma_s` for sFID, as ADM
            publishes them, and `features` (m, D); or images (see `open_images`): a folder, or an
            .npz with `arr_0`. A file may hold both: then statistics are not made of the images.
        kind: what the features come from.
        image_size: side of the samples, pixels.
        needs: the parts that are wanted, among `PARTS`.
        flag: named in messages.

    Raises:
        UserError: the file or folder cannot serve.
    """
    path, needs = Path(path), frozenset(needs)
    if path.is_dir():
        return ReferencePlan.of_images(open_images(path, flag, image_size), needs)
    if not path.is_file():
        raise UserError(
            f"{flag}: {path} does not exist, expected an .npz with mu and sigma or a folder of "
            "images"
        )
    expected = f"expected an .npz with mu ({kind.feature_dim},) and sigma ({kind.feature_dim}, "
    expected += f"{kind.feature_dim})"
    try:
        names = names_in_npz(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{flag}: {path} cannot be read ({error}), {expected}") from error
    # ADM's reference batches hold 10,000 images and the statistics of all of ImageNet.
    known: dict[str, Statistics | Tensor] = {}
    has_images, has_statistics = SAMPLES in names, bool(names & {"mu", "sigma"})
    for part in needs - {"features"}:
        if has_statistics or not has_images:
            dim = kind.feature_dim if part == "pool" else kind.spatial_dim
            known[part] = _read_statistics(path, _STATISTICS[part], dim, flag)
    if "features" in needs and "features" in names:
        known["features"] = _read_features(path, kind.feature_dim, flag)
    if known.keys() == needs:
        return ReferencePlan(path, needs, Reference(**known), None)
    if not has_images:
        raise UserError(
            f"{flag}: {path} holds statistics only, but KID, precision and recall compare single "
            f"images: expected a folder of images, an .npz with {SAMPLES}, or one that "
            "scripts/compute_stats.py wrote with --features"
        )
    return ReferencePlan(path, needs, Reference(**known), open_images(path, flag, image_size))


def cache_folder() -> Path:
    """Where references that were made of images are kept: beside torch-fidelity's own files."""
    return Path(torch.hub.get_dir()).parent / "lpd_references"


def _make(
    source: ImageSource,
    extractor: FeatureExtractor,
    parts: Collection[str],
    batch_size: int,
    num_workers: int,
) -> Reference | None:
    """Parts of the reference, on rank 0; every process reads its share."""
    kind, device = extractor.kind, extractor.device
    moments = {
        part: Moments(kind.feature_dim if part == "pool" else kind.spatial_dim, device)
        for part in _STATISTICS
        if part in parts
    }
    shares: list[FeatureShare] = []

    def work() -> None:
        for ids, found in extract_batches(source, extractor, batch_size, num_workers):
            for part, counted in moments.items():
                with blame(f"{source.flag}: images {ids[0]} to {ids[-1]} of {source.path}"):
                    counted.add(getattr(found, part))
            if "features" in parts:
                shares.append(FeatureShare(ids, Features(found.pool.cpu(), found.logits.cpu())))

    distributed.fail_together(work)
    features = gather_features(shares) if "features" in parts else None
    gathered = distributed.gather_to_main({part: moments[part].cpu() for part in moments})
    if gathered is None:
        return None
    first, *others = gathered
    for other in others:
        for part in moments:
            first[part].merge(other[part])
    statistics = {part: first[part].statistics() for part in moments}
    return Reference(**statistics, features=features.pool if features is not None else None)


def _cache_key(source: ImageSource, extractor: FeatureExtractor) -> str:
    """sha256 (hex) over all that decides the numbers: the images' bytes, network and libraries."""
    import torch_fidelity

    content = {
        "format": CACHE_FORMAT,
        "images": source.digest(),
        "image_size": source.image_size,
        "network": extractor.digest(),
        "torch-fidelity": torch_fidelity.__version__,
        "Pillow": PIL.__version__,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_cache(
    stem: Path, known: Reference, parts: Collection[str], kind: ExtractorKind
) -> Reference:
    """`known` and those of `parts` that are kept."""
    for part in sorted(parts):
        path = stem.with_name(f"{stem.name}-{part}.npz")
        if not path.exists():
            continue
        try:
            if part == "features":
                found = _read_features(path, kind.feature_dim, "cache")
            else:
                dim = kind.feature_dim if part == "pool" else kind.spatial_dim
                names = _STATISTICS[part]
                found = _read_statistics(path, names, dim, "cache")
        except UserError as error:
            logger.warning("%s; it is made anew", error)
            continue
        logger.info("reference: %s from %s", part, path)
        known = replace(known, **{part: found})
    return known


def _write_cache(stem: Path, made: Reference) -> None:
    """Keep each part in a file of its own; without room for it the run goes on."""
    for part in PARTS:
        value = getattr(made, part)
        if value is None:
            continue
        path = stem.with_name(f"{stem.name}-{part}.npz")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Reference(**{part: value}).save(path)
        except OSError as error:
            logger.warning("the reference is not kept: %s", describe_os_error(error))
            return
        logger.info("reference: %s kept in %s", part, path)


def _read_statistics(path: Path, names: tuple[str, str], dim: int, flag: str) -> Statistics:
    """Mean and covariance under `names` in an .npz, checked."""
    mean, covariance = names
    expected = f"expected an .npz with {mean} ({dim},) and {covariance} ({dim}, {dim})"
    try:
        found = read_npz(path, names)
    except KeyError as error:
        raise UserError(f"{flag}: {path} holds no {error.args[0]}, {expected}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{flag}: {path} cannot be read ({error}), {expected}") from error
    for name, shape in ((mean, (dim,)), (covariance, (dim, dim))):
        array = found[name]
        if array.shape != shape or array.dtype.kind != "f":
            raise UserError(
                f"{flag}: {path}: {name} is {array.dtype} of shape {array.shape}, {expected} of "
                "floating-point numbers"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{flag}: {path}: {name} holds NaN or infinity, {expected}")
    sigma = found[covariance].astype(np.float64)
    if (np.diagonal(sigma) < 0).any() or not np.allclose(sigma, sigma.T, rtol=1e-3, atol=1e-6):
        raise UserError(f"{flag}: {path}: {covariance} is no covariance, {expected}")
    return Statistics(found[mean].astype(np.float64), sigma)


def _read_features(path: Path, dim: int, flag: str) -> Tensor:
    """`features` of an .npz, checked: (m, D) float32."""
    expected = f"expected an .npz with features (m, {dim}) of float32"
    try:
        # Unpacked, they can be as large as the file; packed, no larger than anything packed.
        limit = max(MAX_UNPACKED_BYTES, path.stat().st_size)
        found = read_npz(path, ("features",), limit)["features"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{flag}: {path} cannot be read ({error}), {expected}") from error
    if found.ndim != 2 or found.shape[1] != dim or found.dtype != np.float32:
        raise UserError(
            f"{flag}: {path}: features are {found.dtype} of shape {found.shape}, {expected}"
        )
    if not np.isfinite(found).all():
        raise UserError(f"{flag}: {path}: features hold NaN or infinity, {expected}")
    return torch.from_numpy(found.copy())
