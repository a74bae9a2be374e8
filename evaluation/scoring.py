"""How samples are scored, by the flags: which network, which metrics, compared with what."""

from __future__ import annotations

import argparse
import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from evaluation.features import FeatureExtractor, Features, build_extractor
from evaluation.metrics import (
    FEWEST_IMAGES,
    NEEDS,
    PUBLISHED_METRICS,
    Reference,
    Scores,
    check_metrics,
    score,
)
from evaluation.references import ReferencePlan, open_reference
from util.errors import UserError, blame

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scoring:
    """All that turns samples into scores.

    Attributes:
        extractor: the network.
        metrics: names among `evaluation.metrics.RESULTS`.
        plan: what the samples are compared with; None if that is nothing.
        batch_size, num_workers: how the reference's images are read.
        reference: what became of `plan`, on rank 0, once `with_reference` has run.
    """

    extractor: FeatureExtractor
    metrics: tuple[str, ...]
    plan: ReferencePlan | None
    batch_size: int
    num_workers: int
    reference: Reference | None = None

    def with_reference(self) -> Scoring:
        """The same with its reference; all processes call it, each reads its share of the images.

        Raises:
            UserError: on all processes, if an image cannot be read.
        """
        if self.plan is None:
            return self
        reference = self.plan.load(self.extractor, self.batch_size, self.num_workers)
        return replace(self, reference=reference)

    def about(self) -> dict[str, str | None]:
        """What a score is worth nothing without: the network and the reference, for a JSON file."""
        reference = str(self.plan.path) if self.plan is not None else None
        return {"feature_extractor": self.extractor.kind.registered_name, "reference": reference}

    def digest(self) -> str:
        """Which scoring this is, on rank 0: sha256 (hex) over network, reference and metrics."""
        found = hashlib.sha256(f"{self.extractor.digest()} {self.metrics}".encode())
        arrays = {} if self.reference is None else self.reference.arrays()
        for name, array in arrays.items():
            found.update(f"{name} {array.dtype} {array.shape}\n".encode())
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def score(self, features: Features) -> Scores:
        """Scores of all samples' features, in image-id order, on rank 0.

        Raises:
            UserError: they cannot be scored, for example because they are not finite.
        """
        with blame("--feature_extractor"):
            return score(features, self.extractor.kind, self.reference, self.metrics)


def build_scoring(
    args: argparse.Namespace, image_size: int, num_images: int, device: torch.device
) -> Scoring | None:
    """Check the scoring flags and load what they name, but for the images of a reference.

    Args:
        args: the run's flags.
        image_size: side of the samples, pixels.
        num_images: how many samples there are or will be.
        device: where the extractor runs.

    Returns:
        None for `--feature_extractor none`.

    Raises:
        UserError: a flag or file cannot work; the message names it.
    """
    asked = _asked_metrics(args)
    extractor = build_extractor(
        args.feature_extractor,
        args.feature_extractor_weights,
        device,
        spatial=asked is not None and "sfid" in asked,
    )
    if extractor is None:
        if asked is not None:
            raise UserError("--metrics: found --feature_extractor none, expected one that scores")
        return None
    _check_size(args, extractor, image_size)
    path = _reference_path(args, image_size)
    metrics = _settle(asked, path, extractor)
    with blame("--num_images" if num_images < 2 else "--metrics"):
        check_metrics(metrics, extractor.kind, num_images)
    needs = {NEEDS[name] for name in metrics if name in NEEDS}
    plan = None
    if needs and path is not None:
        plan = open_reference(path, extractor.kind, image_size, needs)
        _check_reference_size(plan, metrics)
    return Scoring(extractor, metrics, plan, args.eval_bsz, args.num_workers)


def _asked_metrics(args: argparse.Namespace) -> tuple[str, ...] | None:
    if args.metrics is None:
        return None
    return tuple(dict.fromkeys(name.strip() for name in args.metrics.split(",")))


def _check_size(args: argparse.Namespace, extractor: FeatureExtractor, image_size: int) -> None:
    size = extractor.kind.image_size
    if size is not None and image_size != size:
        found = f"--images of {image_size}" if args.images else f"--img_size {image_size}"
        raise UserError(
            f"--feature_extractor: {args.feature_extractor} takes images of {size} pixels, "
            f"found {found}, expected {size}"
        )


def _reference_path(args: argparse.Namespace, image_size: int) -> Path | None:
    if args.fid_stats is not None:
        return Path(args.fid_stats)
    # Where the published release keeps ADM's statistics.
    path = Path("fid_stats") / f"adm_in{image_size}_stats.npz"
    return path if path.exists() else None


def _settle(
    asked: tuple[str, ...] | None, path: Path | None, extractor: FeatureExtractor
) -> tuple[str, ...]:
    """The metrics to compute: what was asked for, else the published ones as far as possible."""
    if path is not None:
        return asked or PUBLISHED_METRICS
    if asked is None:
        logger.info("no reference (--fid_stats): %s only", extractor.kind.names["is"].title)
        return ("is",)
    for name in asked:
        if name in NEEDS:
            raise UserError(
                f"--metrics: {name} compares with a reference, expected --fid_stats with it"
            )
    return asked


def _check_reference_size(plan: ReferencePlan, metrics: tuple[str, ...]) -> None:
    """What would otherwise fail only once all images are made."""
    features = plan.known.features
    if features is not None:
        count = len(features)
    elif plan.source is not None:
        count = len(plan.source)
    else:
        return
    for name in metrics:
        if name in FEWEST_IMAGES and count < FEWEST_IMAGES[name]:
            raise UserError(
                f"--fid_stats: {count} images are too few for {name}, expected at least "
                f"{FEWEST_IMAGES[name]}"
            )
