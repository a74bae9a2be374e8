"""FID, sFID, IS, KID, precision and recall, by torch-fidelity's own functions on given features."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor

from evaluation.features import ExtractorKind, Features
from util.files import replacing

logger = logging.getLogger(__name__)

# The published protocol's number of samples; scores from any other number say so.
PUBLISHED_SAMPLES = 50_000
PUBLISHED_METRICS = ("fid", "is")


class Metric(NamedTuple):
    """What a name in `--metrics` stands for."""

    results: tuple[str, ...]  # names in `ExtractorKind.names`
    needs: str | None = None  # the part of a `Reference` that it compares with
    fewest_images: int = 2  # on either side; with fewer it is undefined


METRICS = {
    "fid": Metric(("fid",), needs="pool"),
    "sfid": Metric(("sfid",), needs="spatial"),
    "is": Metric(("is",)),
    # torch-fidelity's size of a subset.
    "kid": Metric(("kid",), needs="features", fewest_images=1000),
    # One more than the neighbours that it looks at.
    "prc": Metric(("precision", "recall"), needs="features", fewest_images=3 + 1),
}


class Statistics(NamedTuple):
    """Mean (D,) and covariance (D, D) of a set of features, float64."""

    mu: np.ndarray
    sigma: np.ndarray


class Reference(TypedDict, total=False):
    """What samples are compared with, as far as it is known."""

    pool: Statistics  # for FID
    spatial: Statistics  # for sFID
    features: Tensor  # (m, D) float32, for KID, precision and recall


# The parts of a `Reference` in a file; those of the statistics are ADM's.
ARRAYS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s"), "features": ("features",)}


def reference_arrays(reference: Reference) -> dict[str, np.ndarray]:
    """Return what is known, under the names that it has in a file."""
    arrays = {}
    for part, names in ARRAYS.items():
        if part in reference:
            value = reference[part]
            values = (value.numpy(),) if isinstance(value, Tensor) else value
            arrays |= dict(zip(names, values, strict=True))
    return arrays


def save_reference(reference: Reference, path: str | Path) -> None:
    """Write what is known to an .npz that `--fid_stats` takes; never half a file."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **reference_arrays(reference))


class Moments:
    """Mean and covariance of (B, D) features that come batch by batch (Chan et al. 1983)."""

    def __init__(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        self._count, self._mean, self._scatter = count, mean, scatter

    @classmethod
    def empty(cls, dim: int, device: torch.device) -> Moments:
        options = dict(dtype=torch.float64, device=device)
        return cls(0, torch.zeros(dim, **options), torch.zeros(dim, dim, **options))

    def add(self, features: Tensor) -> None:
        """Count (B, D) features in; refuse those that are not finite (`ValueError`)."""
        require_finite(features)
        values = features.double()
        mean = values.mean(dim=0)
        self.merge(Moments(len(values), mean, (values - mean).T @ (values - mean)))

    def merge(self, other: Moments) -> None:
        """Count in what `other` has counted."""
        if other._count == 0:
            return
        count = self._count + other._count
        step = other._mean - self._mean
        self._scatter += other._scatter
        self._scatter += torch.outer(step, step * (self._count * other._count / count))
        self._mean += step * (other._count / count)
        self._count = count

    def cpu(self) -> Moments:
        return Moments(self._count, self._mean.cpu(), self._scatter.cpu())

    def statistics(self) -> Statistics:
        """Return those of all that was counted in; see `feature_statistics`."""
        _require_enough(self._count, len(self._mean))
        sigma = self._scatter / (self._count - 1)
        return Statistics(self._mean.cpu().numpy(), sigma.cpu().numpy())


class Score(NamedTuple):
    """One result, and its standard deviation over splits or subsets where there are some."""

    value: float
    spread: float | None = None


@dataclass(frozen=True)
class Scores:
    """The scores of one set of samples."""

    kind: ExtractorKind  # what the features were, and so what the scores are called
    num_images: int
    values: Mapping[str, Score]  # under their names in `ExtractorKind.names`

    def json(self) -> dict[str, float | int | list[str]]:
        """Return the scores under their keys, the number of samples, and all in words."""
        return {"num_images": self.num_images, **self._by_key(), "scores": self.lines()}

    def tags(self) -> dict[str, float]:
        """Return the scores under their keys with the number of samples, for a log: `fid-5K`."""
        return {f"{key}{self._samples()}": value for key, value in self._by_key().items()}

    def lines(self) -> list[str]:
        """Write one line a score, for people."""
        return [
            f"{self.title(name)}: {score.value:.4g}"
            + ("" if score.spread is None else f" ± {score.spread:.2g}")
            for name, score in self.values.items()
        ]

    def title(self, name: str) -> str:
        """Name a result with the number of samples, unless it is the published one: `FID-5K`."""
        title, _, note = self.kind.names[name]
        return f"{title}{self._samples()}{note}"

    def _by_key(self) -> dict[str, float]:
        by_key = {}
        for name, score in self.values.items():
            key = self.kind.names[name].key
            if score.spread is None:
                by_key[key] = score.value
            else:
                by_key |= {f"{key}_mean": score.value, f"{key}_std": score.spread}
        return by_key

    def _samples(self) -> str:
        count = self.num_images
        if count == PUBLISHED_SAMPLES:
            return ""
        return f"-{count}" if count % 1000 else f"-{count // 1000}K"


def check_metrics(metrics: tuple[str, ...], kind: ExtractorKind, num_images: int) -> None:
    """Refuse (`ValueError`) scores that these features, or so few images, do not have."""
    if num_images < 2:
        raise ValueError(f"found {num_images} images to score, expected at least 2")
    offered = [name for name, metric in METRICS.items() if kind.names.keys() >= {*metric.results}]
    for name in metrics:
        if name not in offered:
            raise ValueError(
                f"found {name!r}, expected a comma-separated list of {', '.join(offered)} for "
                f"{kind.registered_name}"
            )
        if num_images < METRICS[name].fewest_images:
            raise ValueError(
                f"{name} of {num_images} images is not defined, expected at least "
                f"{METRICS[name].fewest_images}"
            )


def feature_statistics(features: Tensor) -> Statistics:
    """Compute mean and covariance of (n, D) float32 features, by torch-fidelity.

    It takes the mean in float32, as published evaluations do: with 50,000 images that moves a
    distance of 2.4 by 8e-6 of it (made features). A `ValueError` is about fewer than two images, or
    features that are not finite.
    """
    from evaluation import fidelity

    _require_enough(*features.shape)
    require_finite(features)
    statistics = fidelity.fid_features_to_statistics(features)
    # torch-fidelity insists on equal types on both sides, and references come in either.
    return Statistics(*(statistics[name].astype(np.float64) for name in ("mu", "sigma")))


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two sets of statistics of one D."""
    from evaluation import fidelity

    both = (first._asdict(), second._asdict())
    return fidelity.fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"]


def score(
    features: Features,
    kind: ExtractorKind,
    reference: Reference | None = None,
    metrics: tuple[str, ...] = PUBLISHED_METRICS,
) -> Scores:
    """Score samples with torch-fidelity's default settings.

    `features` are in image-id order: splits and subsets depend on it. `reference` holds what the
    `metrics` need. A `ValueError` is about too few images, or features that are not finite.
    """
    check_metrics(metrics, kind, len(features))
    values: dict[str, Score] = {}
    for name in metrics:
        results, needs, _ = METRICS[name]
        other = reference[needs] if needs else None
        values |= _compute(name, features, other, kind.names[results[0]].title)
    for name, result in values.items():
        if not np.isfinite(result.value):
            raise ValueError(
                f"found {kind.names[name].title} {result.value}, expected features and statistics "
                "of a finite one"
            )
    return Scores(kind, len(features), values)


def _compute(
    metric: str, features: Features, other: Statistics | Tensor | None, title: str
) -> dict[str, Score]:
    """The results of a metric against the part of a reference that it needs."""
    from evaluation import fidelity

    if metric in ("fid", "sfid"):
        _check_covariance(other.sigma, title)
        ours = feature_statistics(features.pool if metric == "fid" else features.spatial)
        return {metric: Score(frechet_distance(ours, other))}
    if metric == "is":
        require_finite(features.logits)
        count = len(features)
        splits = min(fidelity.DEFAULTS["isc_splits"], count)
        if count == splits:
            logger.warning(
                "%s of %d images: a split each, which counts 1 whatever it shows", title, count
            )
        result = fidelity.isc_features_to_metric(features.logits, splits)
        return {"is": Score(result["inception_score_mean"], result["inception_score_std"])}
    require_finite(features.pool)
    require_finite(other)
    if metric == "kid":
        result = fidelity.kid_features_to_metric(features.pool, other, verbose=False)
        name = "kernel_inception_distance"
        return {"kid": Score(result[f"{name}_mean"], result[f"{name}_std"])}
    # By blocks: 12,000 images against 12,000 took 0.6 GB, by torch-fidelity's own blocks 2 GB.
    logger.info("comparing %d samples with %d images, each with each", len(features), len(other))
    blocks = dict(save_cpu_ram=True, prc_batch_size=2500, verbose=False)
    result = fidelity.prc_features_to_metric(features.pool, other, **blocks)
    return {name: Score(result[name]) for name in ("precision", "recall")}


def require_finite(features: Tensor) -> None:
    """Refuse (n, D) features that hold NaN or infinity, naming the first such image."""
    bad = (~torch.isfinite(features).all(dim=1)).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"found NaN or infinite features in {len(bad)} of {len(features)} images, the first "
            f"is image {int(bad[0])}; expected finite numbers"
        )


def _check_covariance(sigma: np.ndarray, title: str) -> None:
    """Refuse what is no covariance; warn of a singular one."""
    variances = np.linalg.eigvalsh(sigma)
    if variances[0] < -1e-3 * variances[-1]:
        raise ValueError(f"found a negative variance in {title}'s reference, expected a covariance")
    # A singular one is no obstacle: the trace needs no inverse and no matrix root. (The bound is
    # matrix_rank's.)
    smallest = variances[-1] * len(variances) * np.finfo(np.float64).eps
    rank = int((variances > smallest).sum())
    if rank < len(variances):
        logger.warning(
            "%s: the reference's covariance is singular (rank %d of %d), as that of too few images "
            "is; the distance to it is too large",
            *(title, rank, len(variances)),
        )


def _require_enough(count: int, dim: int) -> None:
    """Refuse a covariance of less than two images; warn of a singular one."""
    if count < 2:
        raise ValueError(f"found {count} images, expected at least 2 for a covariance")
    if count <= dim:
        logger.warning(
            "%s images for %s-dimensional features: their covariance is singular and too few for "
            "a reliable one, the Frechet distance comes out too large",
            *(f"{count:,}", f"{dim:,}"),
        )
