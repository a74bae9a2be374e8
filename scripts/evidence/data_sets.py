"""The two data sets of docs/evidence.md: their real images, and what judges generated ones.

Of crops of photographs, both their judge and the distance see an average over 4 x 4 pixels, the
tokens of the study: what lies inside a token is the tokenizer's doing, what lies between them the
sampler's. Nothing in these features is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import functional

from dataset.image_folder import image_batches, list_images
from evaluation.features import build_extractor, extract
from evaluation.metrics import Statistics, feature_statistics, frechet_distance
from scripts import demo_digits
from scripts.evidence.photographs import PHOTOGRAPHS, SIDE
from util.errors import UserError, blame

TOKEN = 4
# Tokens along a side of a cell of which the judge sees the lines together.
CELL = 4
DIRECTIONS = 8
# Lightness, red against green, blue against yellow.
OPPONENT = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1 / 2, -1 / 2, 0], [-1 / 4, -1 / 4, 1 / 2]])
SCALES = 2
# One grey level: a plane without any contrast keeps a logarithm.
FLOOR = 1 / 255


@dataclass(frozen=True)
class Labelled:
    """Images (n, 3, S, S) uint8 with their classes (n,) int64."""

    images: Tensor
    labels: Tensor

    def spread(self, per_class: int) -> Labelled:
        """Choose as many of each class, evenly spread over what there is; all, if that is less."""
        chosen = []
        for label in self.labels.unique():
            (places,) = torch.where(self.labels == label)
            count = min(per_class, len(places))
            chosen.append(places[torch.arange(count) * len(places) // count])
        return Labelled(self.images[torch.cat(chosen)], self.labels[torch.cat(chosen)])


@dataclass(frozen=True)
class DataSet:
    """What generated images are held against."""

    train: Labelled  # what models and judge were trained on, and the features of digits
    held_out: Labelled  # of the same kind, none of them trained on
    accuracy: Callable[[Labelled], float]  # the share of images that a judge gives their label
    features: Callable[[Tensor], Tensor]  # of images (n, 3, S, S) uint8: (n, D) float32
    references: Mapping[str, Statistics]  # features that distances are to, by name of the distance

    def distances(self, made: Labelled) -> dict[str, float]:
        """Measure Frechet distances of the features to the references."""
        statistics = feature_statistics(self.features(made.images))
        return {
            name: round(float(frechet_distance(statistics, reference)), 4)
            for name, reference in self.references.items()
        }


def digits(args: argparse.Namespace) -> DataSet:
    """Read the demo's digits, with its judge and the features of its classifier."""
    extractor = build_extractor("digits", args.feature_extractor_weights, torch.device("cpu"))
    train, held_out = (
        Labelled(*demo_digits.read_part(args.data, part)) for part in ("train", "test")
    )
    svm = demo_digits.train_judge(train.images, train.labels)

    def features(images: Tensor) -> Tensor:
        return extract(extractor, images).pool

    def accuracy(made: Labelled) -> float:
        return demo_digits.accuracy(svm, made.images, made.labels)

    references = {"frechet_distance": feature_statistics(features(held_out.images))}
    return DataSet(train, held_out, accuracy, features, references)


def photographs(args: argparse.Namespace) -> DataSet:
    """Read crops of the two photographs, each also mirrored, as models see them in training.

    The judge is an SVM on lines and colours; the features are colours and textures, in standard
    deviations of the training crops. The distance is to these: two parts of one picture differ by
    more than samples do from what they were trained on.
    """
    if args.feature_extractor_weights is not None:
        raise UserError(
            f"--feature_extractor_weights: found {args.feature_extractor_weights}, expected none: "
            "the photographs' features are fixed"
        )
    train, held_out = (read_crops(Path(args.data) / part) for part in ("train", "held_out"))
    svm = make_pipeline(StandardScaler(), SVC())
    svm.fit(judge_features(train.images).numpy(), train.labels.numpy())
    deviation = texture_features(train.images).std(dim=0)

    def features(images: Tensor) -> Tensor:
        return texture_features(images) / deviation

    def accuracy(made: Labelled) -> float:
        return float(svm.score(judge_features(made.images).numpy(), made.labels.numpy()))

    parts = {"frechet_distance": train, "frechet_distance_held_out": held_out}
    references = {name: feature_statistics(features(part.images)) for name, part in parts.items()}
    return DataSet(train, held_out, accuracy, features, references)


def read_crops(folder: Path) -> Labelled:
    """Read all crops of a folder, then all mirrored."""
    crops = list_images(folder, "--data")
    if crops.classes != PHOTOGRAPHS:
        raise UserError(
            f"--data: {folder} holds the classes {', '.join(crops.classes)}, expected "
            f"{' and '.join(PHOTOGRAPHS)}"
        )
    with blame("--data"):
        batch = next(image_batches(crops, SIDE, [np.arange(len(crops))]))
    return Labelled(torch.cat([batch.images, batch.images.flip(3)]), batch.labels.repeat(2))


DATA_SETS = {"digits": digits, "photographs": photographs}


def judge_features(images: Tensor) -> Tensor:
    """Compute which colours and lines are where in images (n, 3, S, S) uint8, 16 dividing S.

    For every cell of 16 x 16 pixels the square root of the mean gradient of lightness in each of
    eight directions, and its mean colour: (n, 11 * (S / 16) ** 2) float32.
    """
    colours = _by_token(images)
    light = functional.pad(colours.mean(dim=1), (0, 1, 0, 1), mode="replicate")
    down = light[:, 1:, :-1] - light[:, :-1, :-1]
    right = light[:, :-1, 1:] - light[:, :-1, :-1]
    turn = torch.atan2(down, right) / (2 * torch.pi)
    direction = (turn * DIRECTIONS).round().long() % DIRECTIONS
    votes = functional.one_hot(direction, DIRECTIONS).movedim(-1, 1) * down.hypot(right)[:, None]
    lines = functional.avg_pool2d(votes, CELL).sqrt()
    return torch.cat([lines, functional.avg_pool2d(colours, CELL)], dim=1).flatten(1)


def texture_features(images: Tensor) -> Tensor:
    """Compute colours of images (n, 3, S, S) uint8, and how much they change between tokens.

    Of lightness and two colour contrasts: the means of the four quarters; then, by token and by
    2 x 2 tokens, the logarithms of the mean and of the root mean square difference of neighbours,
    side by side, one below the other and along both diagonals: (n, 60) float32.
    """
    planes = torch.einsum("pc,nchw->nphw", OPPONENT, _by_token(images))
    parts = [functional.avg_pool2d(planes, planes.shape[-1] // 2).flatten(1)]
    for _ in range(SCALES):
        here, right = planes[..., :-1, :-1], planes[..., :-1, 1:]
        below, across = planes[..., 1:, :-1], planes[..., 1:, 1:]
        for difference in (right - here, below - here, across - here, below - right):
            parts.append((difference.abs().mean(dim=(2, 3)) + FLOOR).log())
            parts.append((difference.square().mean(dim=(2, 3)) + FLOOR**2).log() / 2)
        planes = functional.avg_pool2d(planes, 2)
    return torch.cat(parts, dim=1)


def _by_token(images: Tensor) -> Tensor:
    """Mean colours (n, 3, S / 4, S / 4) in [0, 1]."""
    return functional.avg_pool2d(images.float(), TOKEN) / 255
