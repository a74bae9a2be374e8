"""All that one evaluation needs, checked before it starts (method section 9)."""

import argparse
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from evaluation import metrics
from evaluation.features import FeatureExtractor, Features, build_extractor
from evaluation.metrics import METRICS, Reference, Scores
from evaluation.networks import build_decoder
from evaluation.references import ReferencePlan, open_reference
from models.lpd import LPD
from models.sampling import SamplingSettings, read_sampling
from orders.sources import OrderSource, build_orders, read_group_sizes
from tokenizers.vq_model import VQModel
from util.errors import UserError, blame

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scoring:
    """What turns samples into scores."""

    extractor: FeatureExtractor
    metrics: tuple[str, ...]  # names among `METRICS`
    plan: ReferencePlan | None  # what the samples are compared with, if with anything
    # How the reference's images are read.
    batch_size: int
    num_workers: int
    # What became of `plan`, on rank 0, once `with_reference` has run.
    reference: Reference | None = None

    def with_reference(self) -> "Scoring":
        """Load the reference; all processes call it, see `ReferencePlan.load`."""
        sizes = self.batch_size, self.num_workers
        return replace(self, reference=self.plan and self.plan.load(self.extractor, *sizes))

    def about(self) -> dict[str, str | None]:
        """Say what a score is worth nothing without: network and reference, for a JSON file."""
        reference = self.plan and str(self.plan.path)
        return {"feature_extractor": self.extractor.kind.registered_name, "reference": reference}

    def digest(self) -> str:
        """Hash network, metrics and reference, on rank 0: sha256 (hex)."""
        sha256 = hashlib.sha256(f"{self.extractor.digest()} {self.metrics}".encode())
        for name, array in metrics.reference_arrays(self.reference or {}).items():
            sha256.update(f"{name} {array.dtype} {array.shape}\n".encode())
            sha256.update(np.ascontiguousarray(array).data)
        return sha256.hexdigest()

    def score(self, features: Features) -> Scores:
        """Score all samples' features, in image-id order, on rank 0; see `metrics.score`."""
        with blame("--feature_extractor"):
            return metrics.score(features, self.extractor.kind, self.reference, self.metrics)


@dataclass(frozen=True)
class Evaluation:
    """How samples are made and scored."""

    num_images: int  # over all processes, a multiple of `class_num`
    class_num: int  # samples are class-sorted
    batch_size: int  # samples per process and batch
    group_sizes: list[int]  # K sizes that sum to N
    orders: OrderSource
    sampling: SamplingSettings
    sampler: str  # `fast` or `plain`
    seed: int
    bf16: bool  # run the network under bfloat16 autocast
    decode: Callable[[torch.Tensor], torch.Tensor]  # codes (B, N) -> (B, S, S, 3) uint8
    scoring: Scoring | None

    def with_reference(self) -> "Evaluation":
        """Load what the samples are compared with; see `Scoring.with_reference`."""
        return replace(self, scoring=self.scoring and self.scoring.with_reference())


def build_evaluation(
    args: argparse.Namespace, model: LPD, tokenizer: VQModel, device: torch.device
) -> Evaluation:
    """Check the evaluation and sampling flags and load what they name."""
    if args.num_images % args.class_num:
        raise UserError(
            f"--num_images: found {args.num_images}, expected a multiple of the "
            f"{args.class_num} classes (--class_num)"
        )
    sizes = read_group_sizes(args, model.grid.num_tokens)
    return Evaluation(
        num_images=args.num_images,
        class_num=args.class_num,
        batch_size=args.eval_bsz,
        group_sizes=sizes,
        orders=build_orders(args, model.grid, len(sizes)),
        sampling=read_sampling(args, model.label_drop_prob),
        sampler=args.sampler,
        seed=args.seed,
        bf16=args.bf16,
        decode=build_decoder(tokenizer.to(device), model.grid, args.sampler),
        scoring=build_scoring(args, args.img_size, args.num_images, device),
    )


def build_scoring(
    args: argparse.Namespace, image_size: int, num_images: int, device: torch.device
) -> Scoring | None:
    """Check the scoring flags and load what they name, but for the images of a reference.

    There are or will be `num_images` samples of `image_size`. None for `--feature_extractor none`.
    """
    asked = None
    if args.metrics is not None:
        asked = tuple(dict.fromkeys(name.strip() for name in args.metrics.split(",")))
    weights, spatial = args.feature_extractor_weights, "sfid" in (asked or ())
    extractor = build_extractor(args.feature_extractor, weights, device, spatial)
    if extractor is None:
        if asked is not None:
            raise UserError("--metrics: found --feature_extractor none, expected one that scores")
        return None
    kind = extractor.kind
    if kind.image_size not in (None, image_size):
        found = f"--images of {image_size}" if args.images else f"--img_size {image_size}"
        raise UserError(
            f"--feature_extractor: {args.feature_extractor} takes images of {kind.image_size} "
            f"pixels, found {found}, expected {kind.image_size}"
        )
    path = args.fid_stats
    published = Path("fid_stats", f"adm_in{image_size}_stats.npz")  # where the release keeps it
    if not path and published.exists():
        path = published
    names = asked or (metrics.PUBLISHED_METRICS if path else ("is",))
    with blame("--metrics"):
        metrics.check_metrics(names, kind, num_images)
    comparing = [name for name in names if METRICS[name].needs]
    if not path and comparing:
        found = f"{comparing[0]} compares with a reference"
        raise UserError(f"--metrics: {found}, expected --fid_stats with it")
    if not path and asked is None:
        logger.info("no reference (--fid_stats): %s only", kind.names["is"].title)
    plan = None
    if comparing:
        plan = open_reference(path, kind, image_size, {METRICS[name].needs for name in comparing})
        images = plan.known.get("features", plan.source)
        if images is not None:  # too few would otherwise fail only once all images are made
            with blame("--fid_stats"):
                metrics.check_metrics(names, kind, len(images))
    return Scoring(extractor, names, plan, args.eval_bsz, args.num_workers)
