"""The two data sets of docs/evidence.md: their real images, and what judges generated ones."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from dataset.image_folder import image_batches, list_images
from evaluation.features import build_extractor, extract
from evaluation.metrics import Statistics, feature_statistics, frechet_distance
from scripts import demo_digits
from scripts.evidence.crop_features import judge_features, texture_features
from scripts.evidence.photographs import PHOTOGRAPHS, SIDE
from util.errors import UserError, blame


@dataclass(frozen=True)
class Labelled:
    """Images with their classes.

    Attributes:
        images: (n, 3, S, S) uint8.
        labels: (n,) int64.
    """

    images: Tensor
    labels: Tensor

    def spread(self, per_class: int) -> Labelled:
        """As many of each class, evenly spread over what there is; all, where that is less."""
        chosen = []
        for label in self.labels.unique():
            (places,) = torch.where(self.labels == label)
            count = min(per_class, len(places))
            chosen.append(places[torch.arange(count) * len(places) // count])
        return Labelled(self.images[torch.cat(chosen)], self.labels[torch.cat(chosen)])


@dataclass(frozen=True)
class DataSet:
    """What generated images are held against.

    Attributes:
        train: what models and judge were trained on, and the features of digits.
        held_out: of the same kind, none of them trained on.
        judge: images (n, 3, S, S) uint8 and labels (n,) -> share that it gives their label.
        features: images (n, 3, S, S) uint8 -> (n, D) float32.
        references: what Frechet distances are to, by the name of the distance.
    """

    train: Labelled
    held_out: Labelled
    judge: Callable[[Tensor, Tensor], float]
    features: Callable[[Tensor], Tensor]
    references: Mapping[str, Labelled]

    def accuracy(self, made: Labelled) -> float:
        """Share to which the judge gives their label."""
        return self.judge(made.images, made.labels)

    def distances(self, made: Labelled) -> dict[str, float]:
        """Frechet distances of the features to those of the references."""
        found = feature_statistics(self.features(made.images))
        return {
            name: round(float(frechet_distance(found, reference)), 4)
            for name, reference in self._statistics.items()
        }

    @cached_property
    def _statistics(self) -> dict[str, Statistics]:
        """Of the references' features."""
        return {
            name: feature_statistics(self.features(reference.images))
            for name, reference in self.references.items()
        }

    @property
    def num_classes(self) -> int:
        """Labels are below it."""
        return int(self.train.labels.max()) + 1

    @property
    def image_size(self) -> int:
        """Side of the images, S."""
        return self.train.images.shape[-1]


def digits(args: argparse.Namespace) -> DataSet:
    """The demo's digits, its judge and the features of its classifier.

    Raises:
        UserError: a file is not what scripts/demo_digits.py writes; begins with the flag.
    """
    extractor = build_extractor("digits", args.feature_extractor_weights, torch.device("cpu"))
    train, held_out = (
        Labelled(*demo_digits.read_part(args.data, part)) for part in ("train", "test")
    )
    svm = demo_digits.train_judge(train.images, train.labels)
    return DataSet(
        train=train,
        held_out=held_out,
        judge=lambda images, labels: demo_digits.accuracy(svm, images, labels),
        features=lambda images: extract(extractor, images).pool,
        references={"frechet_distance": held_out},
    )


def photographs(args: argparse.Namespace) -> DataSet:
    """Crops of the two photographs, each also mirrored, as the models see them in training.

    The judge is an SVM on lines and colours; the features are colours and textures, in standard
    deviations of the training crops. The distance is to these: two parts of one picture differ by
    more than samples do from what they were trained on.

    Raises:
        UserError: `--data` is not what scripts/evidence/photographs.py writes, or
            `--feature_extractor_weights` is given: there are none.
    """
    if args.feature_extractor_weights is not None:
        raise UserError(
            f"--feature_extractor_weights: found {args.feature_extractor_weights}, expected none: "
            "the photographs' features are fixed"
        )
    train, held_out = (read_crops(Path(args.data) / part) for part in ("train", "held_out"))
    svm = make_pipeline(StandardScaler(), SVC())
    svm.fit(judge_features(train.images).numpy(), train.labels.numpy())
    spread = texture_features(train.images).std(dim=0)
    return DataSet(
        train=train,
        held_out=held_out,
        judge=lambda images, labels: float(
            svm.score(judge_features(images).numpy(), labels.numpy())
        ),
        features=lambda images: texture_features(images) / spread,
        references={"frechet_distance": train, "frechet_distance_held_out": held_out},
    )


def read_crops(folder: Path) -> Labelled:
    """All crops of a folder, then all mirrored.

    Raises:
        UserError: the folder does not hold crops of the two photographs; begins with `--data`.
    """
    found = list_images(folder, "--data")
    if found.classes != PHOTOGRAPHS:
        raise UserError(
            f"--data: {folder} holds the classes {', '.join(found.classes)}, expected "
            f"{' and '.join(PHOTOGRAPHS)}"
        )
    with blame("--data"):
        batch = next(image_batches(found, SIDE, [np.arange(len(found))]))
    return Labelled(
        torch.cat([batch.images, batch.images.flip(3)]), torch.cat([batch.labels, batch.labels])
    )


DATA_SETS = {"digits": digits, "photographs": photographs}
