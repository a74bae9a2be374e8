"""The data sets of docs/evidence.md: their real images, and what judges generated ones.

Of crops of photographs, both their judge and the distance see an average over 4 x 4 pixels, the
tokens of the study: what lies inside a token is the tokenizer's doing, what lies between them the
sampler's. Nothing in these features is trained.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import functional

from dataset.image_folder import ImageBatch
from evaluation.features import build_extractor, extract
from evaluation.metrics import feature_statistics, frechet_distance
from scripts import demo_digits
from scripts.evidence.photographs import PHOTOGRAPHS, SIDE

# Lightness, red against green, blue against yellow.
OPPONENT = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1 / 2, -1 / 2, 0], [-1 / 4, -1 / 4, 1 / 2]])


@dataclass(frozen=True)
class DataSet:
    """Real images (n, 3, S, S) uint8 with labels, and what generated ones are held against."""

    train: ImageBatch  # what models and judge were trained on, and the features of digits
    held_out: ImageBatch  # of the same kind, none of them trained on
    judge: Pipeline  # a classifier of images
    features: Callable[[Tensor], Tensor]  # of images: (n, D) float32
    compared: Mapping[str, ImageBatch]  # what distances are to, by name of the distance

    def measure(self, judged: ImageBatch, compared: Tensor) -> dict[str, float]:
        """Compute the share that the judge gives their label, and Frechet distances of features."""
        scores = {"class_accuracy": float(self.judge.score(*judged))}
        statistics = feature_statistics(self.features(compared))
        for name, real in self.compared.items():
            reference = feature_statistics(self.features(real.images))
            scores[name] = round(frechet_distance(statistics, reference), 4)
        return scores


def digits(args: argparse.Namespace) -> DataSet:
    """Read the demo's digits, with its judge and the features of its classifier."""
    extractor = build_extractor("digits", args.feature_extractor_weights, torch.device("cpu"))
    train, held_out = (demo_digits.read_part(args.data, part) for part in ("train", "test"))
    judge = demo_digits.train_judge(*train)

    def features(images: Tensor) -> Tensor:
        return extract(extractor, images).pool

    return DataSet(train, held_out, judge, features, {"frechet_distance": held_out})


def photographs(args: argparse.Namespace) -> DataSet:
    """Read crops of the two photographs, each also mirrored, as models see them in training.

    Features are in standard deviations of the training crops. The distance is to these: two parts
    of one picture differ by more than samples do from what they were trained on.
    """
    parts = []
    for part in ("train", "held_out"):
        images, labels = demo_digits.read_folder(Path(args.data) / part, PHOTOGRAPHS, SIDE)
        parts.append(ImageBatch(torch.cat([images, images.flip(3)]), labels.repeat(2)))
    train, held_out = parts
    judge = make_pipeline(FunctionTransformer(judge_features), StandardScaler(), SVC()).fit(*train)
    deviation = texture_features(train.images).std(dim=0)

    def features(images: Tensor) -> Tensor:
        return texture_features(images) / deviation

    compared = {"frechet_distance": train, "frechet_distance_held_out": held_out}
    return DataSet(train, held_out, judge, features, compared)


# By name on the command line: what reads a data set from --data.
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
    direction = (turn * 8).round().long() % 8
    votes = functional.one_hot(direction, 8).movedim(-1, 1) * down.hypot(right)[:, None]
    lines = functional.avg_pool2d(votes, 4).sqrt()
    return torch.cat([lines, functional.avg_pool2d(colours, 4)], dim=1).flatten(1)


def texture_features(images: Tensor) -> Tensor:
    """Compute colours of images (n, 3, S, S) uint8, and how much they change between tokens.

    Of lightness and two colour contrasts: the means of the four quarters; then, by token and by
    2 x 2 tokens, the logarithms of the mean and of the root mean square difference of neighbours,
    side by side, one below the other and along both diagonals: (n, 60) float32.
    """
    floor = 1 / 255  # a grey level: a plane without any contrast keeps a logarithm
    planes = torch.einsum("pc,nchw->nphw", OPPONENT, _by_token(images))
    parts = [functional.avg_pool2d(planes, planes.shape[-1] // 2).flatten(1)]
    for _ in range(2):
        here, right = planes[..., :-1, :-1], planes[..., :-1, 1:]
        below, across = planes[..., 1:, :-1], planes[..., 1:, 1:]
        for difference in (right - here, below - here, across - here, below - right):
            parts.append((difference.abs().mean(dim=(2, 3)) + floor).log())
            parts.append((difference.square().mean(dim=(2, 3)) + floor**2).log() / 2)
        planes = functional.avg_pool2d(planes, 2)
    return torch.cat(parts, dim=1)


def _by_token(images: Tensor) -> Tensor:
    """Mean colours (n, 3, S / 4, S / 4) in [0, 1]."""
    return functional.avg_pool2d(images.float(), 4) / 255
