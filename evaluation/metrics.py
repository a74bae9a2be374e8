"""FID, sFID, IS, KID, precision and recall, by torch-fidelity's own functions on given features."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluation.features import ExtractorKind, Features
from util.files import replacing

logger = logging.getLogger(__name__)

# The published protocol's number of samples; scores from any other number say so.
PUBLISHED_SAMPLES = 50_000
# What `--metrics` chooses from: each name's results, and the part of a `Reference` it needs.
RESULTS = {
    "fid": ("fid",),
    "sfid": ("sfid",),
    "is": ("is",),
    "kid": ("kid",),
    "prc": ("precision", "recall"),
}
NEEDS = {"fid": "pool", "sfid": "spatial", "kid": "features", "prc": "features"}
# Fewer images, on either side, leave these undefined: torch-fidelity's size of a subset, and one
# more than the neighbours that it looks at.
FEWEST_IMAGES = {"kid": 1000, "prc": 3 + 1}
PUBLISHED_METRICS = ("fid", "is")


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
        """Write `mu` and `sigma` to an .npz that `--fid_stats` takes; never half a file."""
        Reference(pool=self).save(path)


@dataclass(frozen=True)
class Reference:
    """What samples are compared with, as far as it is known.

    Attributes:
        pool: for FID.
        spatial: for sFID.
        features: (m, D) float32, for KID, precision and recall.
    """

    pool: Statistics | None = None
    spatial: Statistics | None = None
    features: Tensor | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """What is known, under the names that ADM's files have, and `features`."""
        found = {}
        if self.pool is not None:
            found |= {"mu": self.pool.mu, "sigma": self.pool.sigma}
        if self.spatial is not None:
            found |= {"mu_s": self.spatial.mu, "sigma_s": self.spatial.sigma}
        if self.features is not None:
            found["features"] = self.features.numpy()
        return found

    def save(self, path: str | Path) -> None:
        """Write `arrays` to an .npz that `--fid_stats` takes; never half a file."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **self.arrays())


class Moments:
    """Mean and covariance of features that come batch by batch (Chan, Golub and LeVeque 1983).

    Args:
        dim: their width D.
        device: where they come from.
    """

    def __init__(self, dim: int, device: torch.device) -> None:
        self._count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Count (B, D) features in.

        Raises:
            ValueError: they are not finite.
        """
        require_finite(features)
        values = features.double()
        batch = Moments.__new__(Moments)
        batch._count, batch._mean = len(values), values.mean(dim=0)
        batch._scatter = (values - batch._mean).T @ (values - batch._mean)
        self.merge(batch)

    def merge(self, other: Moments) -> None:
        """Count in what `other` has counted."""
        if other._count == 0:
            return
        count = self._count + other._count
        step = other._mean.to(self._mean.device) - self._mean
        self._scatter += other._scatter.to(self._scatter.device)
        self._scatter += torch.outer(step, step * (self._count * other._count / count))
        self._mean += step * (other._count / count)
        self._count = count

    def cpu(self) -> Moments:
        """The same on the host."""
        found = Moments(0, torch.device("cpu"))
        found._count, found._mean = self._count, self._mean.cpu()
        found._scatter = self._scatter.cpu()
        return found

    def statistics(self) -> Statistics:
        """Of all that was counted in; a warning if it is too little.

        Raises:
            ValueError: fewer than two images.
        """
        _require_enough(self._count, len(self._mean))
        sigma = self._scatter / (self._count - 1)
        return Statistics(self._mean.cpu().numpy(), sigma.cpu().numpy())


class Score(NamedTuple):
    """One result, and its standard deviation over splits or subsets where there are some."""

    value: float
    spread: float | None = None


@dataclass(frozen=True)
class Scores:
    """The scores of one set of samples.

    Attributes:
        kind: what the features were, and so what the scores are called.
        num_images: number of samples.
        values: the results, under their names in `ExtractorKind.names`.
    """

    kind: ExtractorKind
    num_images: int
    values: Mapping[str, Score]

    def json(self) -> dict[str, float | int | list[str]]:
        """The scores under their keys, the number of samples, and all in words."""
        return {"num_images": self.num_images, **self._by_key(), "scores": self.lines()}

    def tags(self) -> dict[str, float]:
        """The scores under their keys and the number of samples, for a log: `fid-5K`."""
        return {f"{key}{self._samples()}": value for key, value in self._by_key().items()}

    def lines(self) -> list[str]:
        """One line a score for people, naming any number of samples but the published one."""
        return [
            f"{self.title(name)}: {score.value:.4g}"
            + ("" if score.spread is None else f" ± {score.spread:.2g}")
            for name, score in self.values.items()
        ]

    def title(self, name: str) -> str:
        """What a result is called where people read it: `FID-5K`."""
        found = self.kind.names[name]
        return f"{found.title}{self._samples()}{found.note}"

    def _by_key(self) -> dict[str, float]:
        found = {}
        for name, score in self.values.items():
            key = self.kind.names[name].key
            if score.spread is None:
                found[key] = score.value
            else:
                found |= {f"{key}_mean": score.value, f"{key}_std": score.spread}
        return found

    def _samples(self) -> str:
        count = self.num_images
        if count == PUBLISHED_SAMPLES:
            return ""
        return f"-{count}" if count % 1000 else f"-{count // 1000}K"


def check_metrics(metrics: tuple[str, ...], kind: ExtractorKind, num_images: int) -> None:
    """Refuse scores that these features, or so few images, do not have.

    Raises:
        ValueError: there is one among `metrics`.
    """
    if num_images < 2:
        raise ValueError(f"found {num_images} images to score, expected at least 2")
    offered = [name for name, results in RESULTS.items() if set(results) <= set(kind.names)]
    for name in metrics:
        if name not in offered:
            raise ValueError(
                f"found {name!r}, expected a comma-separated list of {', '.join(offered)} for "
                f"{kind.registered_name}"
            )
        fewest = FEWEST_IMAGES.get(name, 2)
        if num_images < fewest:
            raise ValueError(
                f"{name} of {num_images} images is not defined, expected at least {fewest}"
            )


def feature_statistics(features: Tensor) -> Statistics:
    """Mean and covariance of features, by torch-fidelity.

    It takes the mean in float32, as published evaluations do: with 50,000 images that moves a
    distance of 2.4 by 8e-6 of it (made features); from few images nothing is seen.

    Args:
        features: (n, D) float32, n >= 2.

    Raises:
        ValueError: fewer than two images, or features that are not finite.
    """
    from torch_fidelity.metric_fid import fid_features_to_statistics

    _require_enough(*features.shape)
    require_finite(features)
    found = fid_features_to_statistics(features)
    # torch-fidelity insists on equal types on both sides, and references come in either.
    return Statistics(mu=found["mu"].astype(np.float64), sigma=found["sigma"].astype(np.float64))


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two sets of statistics of one D."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return fid_statistics_to_metric(vars(first), vars(second), verbose=False)[KEY_METRIC_FID]


def score(
    features: Features,
    kind: ExtractorKind,
    reference: Reference | None = None,
    metrics: tuple[str, ...] = PUBLISHED_METRICS,
) -> Scores:
    """Score samples with torch-fidelity's default settings.

    Args:
        features: of the samples, in image-id order (the splits and subsets depend on it).
        kind: what computed them.
        reference: what the samples are compared with, holding what `metrics` need.
        metrics: names among `RESULTS`.

    Raises:
        ValueError: too few images on either side, features that are not finite, or a reference
            that lacks something.
    """
    check_metrics(metrics, kind, len(features))
    values: dict[str, Score] = {}
    for name in metrics:
        if name == "is":
            values["is"] = _score_over_classes(features.logits, kind)
            continue
        other = getattr(reference, NEEDS[name], None)
        if other is None:
            raise ValueError(f"found no {NEEDS[name]} in the reference, expected it for {name}")
        if name == "fid":
            values["fid"] = _distance(features.pool, other, kind.names["fid"].title)
        elif name == "sfid":
            values["sfid"] = _distance(features.spatial, other, kind.names["sfid"].title)
        else:
            _require_comparable(name, features.pool, other)
            compare = _kernel_distance if name == "kid" else _precision_and_recall
            values |= compare(features.pool, other)
    for name, found in values.items():
        if not np.isfinite(found.value):
            raise ValueError(
                f"found {kind.names[name].title} {found.value}, expected features and statistics "
                "of a finite one"
            )
    return Scores(kind, len(features), values)


def require_finite(features: Tensor) -> None:
    """Refuse (n, D) features that hold NaN or infinity, naming the first such image."""
    bad = (~torch.isfinite(features).all(dim=1)).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"found NaN or infinite features in {len(bad)} of {len(features)} images, the first "
            f"is image {int(bad[0])}; expected finite numbers"
        )


def _distance(features: Tensor | None, other: Statistics, title: str) -> Score:
    if features is None:
        raise ValueError(f"found no features for {title}, expected an extractor that gives them")
    variances = np.linalg.eigvalsh(other.sigma)
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
            title,
            rank,
            len(variances),
        )
    return Score(frechet_distance(feature_statistics(features), other))


def _score_over_classes(logits: Tensor, kind: ExtractorKind) -> Score:
    from torch_fidelity.metric_isc import (
        KEY_METRIC_ISC_MEAN,
        KEY_METRIC_ISC_STD,
        isc_features_to_metric,
    )
    from torch_fidelity.utils import DEFAULTS

    require_finite(logits)
    title, splits = kind.names["is"].title, min(DEFAULTS["isc_splits"], len(logits))
    if len(logits) == splits:
        logger.warning(
            "%s of %d images: a split each, which counts 1 whatever it shows", title, len(logits)
        )
    found = isc_features_to_metric(
        logits,
        splits=splits,
        shuffle=DEFAULTS["samples_shuffle"],
        rng_seed=DEFAULTS["rng_seed"],
    )
    return Score(found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD])


def _kernel_distance(features: Tensor, other: Tensor) -> dict[str, Score]:
    from torch_fidelity.metric_kid import (
        KEY_METRIC_KID_MEAN,
        KEY_METRIC_KID_STD,
        kid_features_to_metric,
    )

    found = kid_features_to_metric(features, other, verbose=False)
    return {"kid": Score(found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD])}


def _precision_and_recall(features: Tensor, other: Tensor) -> dict[str, Score]:
    from torch_fidelity.metric_prc import (
        KEY_METRIC_PRECISION,
        KEY_METRIC_RECALL,
        prc_features_to_metric,
    )

    # By blocks: 12,000 images against 12,000 took 0.6 GB, by torch-fidelity's own blocks 2 GB.
    logger.info("comparing %d samples with %d images, each with each", len(features), len(other))
    found = prc_features_to_metric(
        features, other, save_cpu_ram=True, prc_batch_size=2500, verbose=False
    )
    precision, recall = found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]
    return {"precision": Score(precision), "recall": Score(recall)}


def _require_comparable(name: str, features: Tensor, other: Tensor) -> None:
    require_finite(features)
    require_finite(other)
    if len(other) < FEWEST_IMAGES[name]:
        raise ValueError(
            f"{name} with a reference of {len(other)} images is not defined, expected at least "
            f"{FEWEST_IMAGES[name]}"
        )


def _require_enough(count: int, dim: int) -> None:
    """Refuse a covariance of less than two images; warn of a singular one."""
    if count < 2:
        raise ValueError(f"found {count} images, expected at least 2 for a covariance")
    if count <= dim:
        logger.warning(
            "%s images for %s-dimensional features: their covariance is singular and too few for "
            "a reliable one, the Frechet distance comes out too large",
            f"{count:,}",
            f"{dim:,}",
        )
