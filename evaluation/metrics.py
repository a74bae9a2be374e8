"""FID, sFID, IS, KID, precision and recall, by torch-fidelity's own functions on given features."""

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

    needs: str | None  # the part of a `Reference` that it compares with
    fewest_images: int = 2  # on either side; with fewer it is undefined


METRICS = {
    "fid": Metric("pool"),
    "sfid": Metric("spatial"),
    "is": Metric(None),
    "kid": Metric("features", fewest_images=1000),  # torch-fidelity's size of a subset
    "prc": Metric("features", fewest_images=3 + 1),  # one more than the neighbours it looks at
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


class Moments(NamedTuple):
    """Count, mean (D,) and scatter (D, D), float64, of features that come batch by batch."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Take those of (B, D) features; refuse features that are not finite (`ValueError`)."""
        require_finite(features)
        values = features.double()
        mean = values.mean(dim=0)
        return cls(len(values), mean, (values - mean).T @ (values - mean))

    def merged(self, other: "Moments") -> "Moments":
        """Join what both have counted (Chan et al. 1983)."""
        count, step = self.count + other.count, other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter += torch.outer(step, step * (self.count * other.count / count))
        return Moments(count, self.mean + step * (other.count / count), scatter)

    def statistics(self) -> Statistics:
        """Return those of all that was counted in, at least two images; on the CPU only."""
        _warn_of_few(self.count, len(self.mean))
        return Statistics(self.mean.numpy(), (self.scatter / (self.count - 1)).numpy())


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
    offered = [name for name in METRICS if name != "sfid" or "spatial" in kind.dims]
    for name in metrics:
        if name not in offered:
            expected = f"a comma-separated list of {', '.join(offered)} for {kind.registered_name}"
            raise ValueError(f"found {name!r}, expected {expected}")
        fewest = METRICS[name].fewest_images
        if num_images < fewest:
            found = f"{name} of {num_images} images is not defined"
            raise ValueError(f"{found}, expected at least {fewest}")


def feature_statistics(features: Tensor) -> Statistics:
    """Compute mean and covariance of (n, D) float32 features, by torch-fidelity.

    It takes the mean in float32, as published evaluations do: with 50,000 images that moves a
    distance of 2.4 by 8e-6 of it (made features). A `ValueError` is about NaN or infinity.
    """
    from evaluation import fidelity

    _warn_of_few(*features.shape)
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
    from evaluation import fidelity

    check_metrics(metrics, kind, len(features))
    values: dict[str, Score] = {}
    for metric in metrics:
        needs = METRICS[metric].needs
        other = reference[needs] if needs else None
        ours = {"is": features.logits, "sfid": features.spatial}.get(metric, features.pool)
        require_finite(ours)
        if isinstance(other, Tensor):
            require_finite(other)
        if metric in ("fid", "sfid"):
            values[metric] = Score(frechet_distance(feature_statistics(ours), other))
        elif metric == "is":
            splits = min(fidelity.DEFAULTS["isc_splits"], len(ours))
            if splits == len(ours):
                text = "%s of %d images: a split each, which counts 1 whatever it shows"
                logger.warning(text, kind.names["is"].title, splits)
            found = fidelity.isc_features_to_metric(ours, splits)
            values["is"] = Score(found["inception_score_mean"], found["inception_score_std"])
        elif metric == "kid":
            found = fidelity.kid_features_to_metric(ours, other, verbose=False)
            mean, spread = (found[f"kernel_inception_distance_{part}"] for part in ("mean", "std"))
            values["kid"] = Score(mean, spread)
        else:
            # By blocks: 12,000 images against 12,000 took 0.6 GB, by the library's own ones 2 GB.
            logger.info("comparing %d samples with %d images", len(ours), len(other))
            blocks = dict(save_cpu_ram=True, prc_batch_size=2500, verbose=False)
            found = fidelity.prc_features_to_metric(ours, other, **blocks)
            values |= {name: Score(found[name]) for name in ("precision", "recall")}
    for name, result in values.items():
        if not np.isfinite(result.value):
            found = f"found {kind.names[name].title} {result.value}"
            raise ValueError(f"{found}, expected features and statistics of a finite one")
    return Scores(kind, len(features), values)


def require_finite(features: Tensor) -> None:
    """Refuse (n, D) features that hold NaN or infinity, naming the first such image."""
    bad = (~torch.isfinite(features).all(dim=1)).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"found NaN or infinite features in {len(bad)} of {len(features)} images, the first "
            f"is image {int(bad[0])}; expected finite numbers"
        )


def _warn_of_few(count: int, dim: int) -> None:
    if count <= dim:
        logger.warning(
            "%s images for %s-dimensional features: their covariance is singular and too few for "
            "a reliable one, the Frechet distance comes out too large",
            *(f"{count:,}", f"{dim:,}"),
        )
