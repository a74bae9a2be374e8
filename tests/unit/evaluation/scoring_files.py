"""Images, networks and helpers for the tests of scores."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.digits import DigitsClassifier
from evaluation.features import FeatureExtractor, build_extractor
from evaluation.metrics import Scores, feature_statistics

CPU = torch.device("cpu")


def random_images(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """(count, size, size, 3) uint8 of coarse random blocks."""
    shape = (count, size // 4, size // 4, 3)
    coarse = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def write_folder(folder: Path, images: np.ndarray, deep: bool = False) -> Path:
    """PNG files, flat or in sub-folders of sub-folders."""
    for number, pixels in enumerate(images):
        below = folder / f"{number % 3}/deeper" if deep else folder
        below.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(below / f"{number:05d}.png")
    return folder


def write_digits(path: Path, seed: int = 0) -> Path:
    """Weights of a random digits classifier whose features differ from image to image."""
    torch.manual_seed(seed)
    classifier = DigitsClassifier()
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save({"model": classifier.state_dict()}, path)
    return path


def digits_extractor(path: Path, seed: int = 0) -> FeatureExtractor:
    """The network of `write_digits`."""
    return build_extractor("digits", str(write_digits(path, seed)), CPU)


def assert_same_scores(found: Scores, theirs: Mapping[str, float], rel: float) -> None:
    """Scores are those of torch-fidelity, under its names but for `fid` and `sfid`."""
    for name, score in found.values.items():
        key = {"is": "inception_score", "kid": "kernel_inception_distance"}.get(name, name)
        expected = {f"{key}_mean": score.value, f"{key}_std": score.spread}
        if name not in ("is", "kid"):
            assert score.spread is None
            expected = {key: score.value}
        assert expected == pytest.approx({key: theirs[key] for key in expected}, rel=rel)


def assert_made_of(mu: np.ndarray, sigma: np.ndarray, features: object, expected: Tensor) -> None:
    """Statistics and features are those of `expected` (n, D), extracted in batches of any size.

    Other kernels sum a layer's thousand products in another order: features and means differ by
    sqrt(1000) half units in the last place, a covariance by twice that times the spread.
    """
    statistics = feature_statistics(expected)
    rounding = 32 * 2**-24 * expected.abs().max().item()
    spread = statistics.sigma.diagonal().max() ** 0.5
    np.testing.assert_allclose(features, expected, rtol=0, atol=rounding)
    np.testing.assert_allclose(mu, statistics.mu, rtol=0, atol=rounding)
    np.testing.assert_allclose(sigma, statistics.sigma, rtol=0, atol=2 * rounding * spread)
