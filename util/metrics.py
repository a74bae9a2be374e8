"""FID and IS (method section 9), computed by torch-fidelity's own functions on given features."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_isc import (
    KEY_METRIC_ISC_MEAN,
    KEY_METRIC_ISC_STD,
    isc_features_to_metric,
)
from torch_fidelity.utils import DEFAULTS, glob_samples_paths

from util.arrays import read_npz
from util.errors import UserError, blame
from util.features import ExtractorKind, FeatureExtractor, Features, extract
from util.files import replacing
from util.image_folder import ImageList, image_batches
from util.logs import progress

logger = logging.getLogger(__name__)

# The published protocol's number of samples; scores from any other number say so.
PUBLISHED_SAMPLES = 50_000


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a set of features.

    Attributes:
        mu: (D,) float64.
        sigma: (D, D) float64.
    """

    mu: np.ndarray
    sigma: np.ndarray

    def save(self, path: str | Path) -> None:
        """Write `mu` and `sigma` to an .npz that `load_reference` reads; never half a file."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, mu=self.mu, sigma=self.sigma)


@dataclass(frozen=True)
class Scores:
    """The scores of one set of samples.

    Attributes:
        kind: what the features were, and so what the scores are called.
        num_images: number of samples.
        distance: Frechet distance to the reference; None without a reference.
        score_mean, score_std: exp(KL) over the splits of the samples.
    """

    kind: ExtractorKind
    num_images: int
    distance: float | None
    score_mean: float
    score_std: float

    def json(self) -> dict[str, float | int]:
        """The scores under their keys, with the number of samples."""
        values: dict[str, float | int] = {"num_images": self.num_images}
        if self.distance is not None:
            values[self.kind.distance_key] = self.distance
        values[f"{self.kind.score_key}_mean"] = self.score_mean
        values[f"{self.kind.score_key}_std"] = self.score_std
        return values

    def lines(self) -> list[str]:
        """One line a score for people, naming any number of samples but the published one."""
        samples = "" if self.num_images == PUBLISHED_SAMPLES else f" ({self.num_images:,} samples)"
        lines = [f"{self.kind.score}{samples}: {self.score_mean:.4g} ± {self.score_std:.2g}"]
        if self.distance is not None:
            lines.insert(0, f"{self.kind.distance}{samples}: {self.distance:.4g}")
        return lines


def feature_statistics(pool: Tensor) -> Statistics:
    """Mean and covariance of features.

    Args:
        pool: (n, D) float32, n >= 2.

    Raises:
        ValueError: fewer than two images, or features that are not finite.
    """
    count, dim = pool.shape
    if count < 2:
        raise ValueError(f"found {count} images, expected at least 2 for a covariance")
    _require_finite(pool)
    if count < dim:
        logger.warning(
            "%s images for %s-dimensional features: too few for a reliable covariance, the "
            "Frechet distance comes out too large",
            f"{count:,}",
            f"{dim:,}",
        )
    found = fid_features_to_statistics(pool)
    # torch-fidelity insists on equal types on both sides, and references come in either.
    return Statistics(mu=found["mu"].astype(np.float64), sigma=found["sigma"].astype(np.float64))


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two sets of statistics of one D."""
    return fid_statistics_to_metric(vars(first), vars(second), verbose=False)[KEY_METRIC_FID]


def score(features: Features, kind: ExtractorKind, reference: Statistics | None = None) -> Scores:
    """Score samples with torch-fidelity's default settings.

    Args:
        features: of the samples, in image-id order (the score's splits depend on it).
        kind: what computed them.
        reference: what the Frechet distance is to; None leaves it out.

    Raises:
        ValueError: fewer than two images, or features that are not finite.
    """
    count = len(features.logits)
    statistics = feature_statistics(features.pool)
    _require_finite(features.logits)
    splits = min(DEFAULTS["isc_splits"], count)
    if splits < DEFAULTS["isc_splits"]:
        logger.warning("%s of %d images: %d splits, not 10", kind.score, count, splits)
    over_classes = isc_features_to_metric(
        features.logits,
        splits=splits,
        shuffle=DEFAULTS["samples_shuffle"],
        rng_seed=DEFAULTS["rng_seed"],
    )
    return Scores(
        kind=kind,
        num_images=count,
        distance=frechet_distance(statistics, reference) if reference else None,
        score_mean=over_classes[KEY_METRIC_ISC_MEAN],
        score_std=over_classes[KEY_METRIC_ISC_STD],
    )


def load_reference(
    path: str | Path,
    extractor: FeatureExtractor,
    image_size: int,
    batch_size: int = 64,
    num_workers: int = 0,
    flag: str = "--fid_stats",
) -> Statistics:
    """The statistics that samples are compared with.

    Args:
        path: an .npz with `mu` (D,) and `sigma` (D, D), as ADM publishes them, or a folder of PNG
            and JPEG images at any depth.
        extractor: what the samples' features come from; a folder's are computed with it.
        image_size: side of the samples, pixels; a folder's images of another size get the ADM
            centre crop (method section 8).
        batch_size, num_workers: how a folder is read.
        flag: named in messages.

    Raises:
        UserError: the file or folder cannot serve.
    """
    path = Path(path)
    if path.is_dir():
        return _folder_statistics(path, extractor, image_size, batch_size, num_workers, flag)
    if path.is_file():
        return _read_statistics(path, extractor.kind.feature_dim, flag)
    raise UserError(
        f"{flag}: {path} does not exist, expected an .npz with mu and sigma or a folder of images"
    )


def folder_features(
    paths: Sequence[str | Path],
    extractor: FeatureExtractor,
    image_size: int,
    batch_size: int = 64,
    num_workers: int = 0,
) -> Features:
    """Features of image files, in the files' order, centre-cropped to `image_size` if need be.

    Raises:
        UserError: a file cannot be read as an image.
    """
    images = ImageList(
        paths=tuple(Path(p) for p in paths),
        labels=np.zeros(len(paths), dtype=np.int64),
        classes=("",),
    )
    batches = [
        np.arange(start, min(start + batch_size, len(paths)))
        for start in range(0, len(paths), batch_size)
    ]
    loaded = image_batches(images, image_size, batches, num_workers=num_workers)
    bar = progress(loaded, total=len(batches), desc="features", unit="batch")
    return Features.join([extract(extractor, batch.images).cpu() for batch in bar])


def _require_finite(features: Tensor) -> None:
    """Refuse (n, D) features that hold NaN or infinity, naming the first such image."""
    bad = (~torch.isfinite(features).all(dim=1)).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"found NaN or infinite features in {len(bad)} of {len(features)} images, the first "
            f"is image {int(bad[0])}; expected finite numbers"
        )


def _folder_statistics(
    folder: Path,
    extractor: FeatureExtractor,
    image_size: int,
    batch_size: int,
    num_workers: int,
    flag: str,
) -> Statistics:
    """Statistics of the images that torch-fidelity would find in `folder`, in its order."""
    extensions = DEFAULTS["samples_find_ext"]
    paths = glob_samples_paths(str(folder), True, extensions, verbose=False)
    if len(paths) < 2:
        raise UserError(
            f"{flag}: {folder} holds {len(paths)} images ({extensions}), expected at least 2"
        )
    with blame(flag):
        features = folder_features(paths, extractor, image_size, batch_size, num_workers)
        return feature_statistics(features.pool)


def _read_statistics(path: Path, dim: int, flag: str) -> Statistics:
    """`mu` and `sigma` of an .npz, checked."""
    expected = f"expected an .npz with mu ({dim},) and sigma ({dim}, {dim})"
    try:
        found = read_npz(path, ("mu", "sigma"))
    except KeyError as error:
        raise UserError(f"{flag}: {path} holds no {error.args[0]}, {expected}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{flag}: {path} cannot be read ({error}), {expected}") from error
    for name, shape in (("mu", (dim,)), ("sigma", (dim, dim))):
        array = found[name]
        if array.shape != shape or array.dtype.kind != "f":
            raise UserError(
                f"{flag}: {path}: {name} is {array.dtype} of shape {array.shape}, {expected} of "
                "floating-point numbers"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{flag}: {path}: {name} holds NaN or infinity, {expected}")
    return Statistics(found["mu"].astype(np.float64), found["sigma"].astype(np.float64))
