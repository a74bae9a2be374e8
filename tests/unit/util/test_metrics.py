"""FID and IS: torch-fidelity's numbers, sound references, honest labels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from PIL import Image
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric

from tests.unit.util.test_features import save_random_inception
from util.errors import UserError
from util.features import KINDS, DigitsClassifier, FeatureExtractor, Features, build_extractor
from util.metrics import (
    Statistics,
    feature_statistics,
    folder_features,
    frechet_distance,
    load_reference,
    score,
)

DIGITS = KINDS["digits"]


def random_features(count: int, seed: int, dim: int = 16, shift: float = 0.0) -> Features:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((dim, dim)) / dim**0.5
    pool = rng.standard_normal((count, dim)) @ mixing + shift
    logits = 3 * rng.standard_normal((count, 10))
    return Features(torch.from_numpy(pool).float(), torch.from_numpy(logits).float())


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> FeatureExtractor:
    torch.manual_seed(0)
    path = weights_path(tmp_path_factory.mktemp("weights"))
    torch.save({"model": DigitsClassifier().state_dict()}, path)
    extractor = build_extractor("digits", str(path), torch.device("cpu"))
    assert extractor is not None
    return extractor


def weights_path(folder: Path) -> Path:
    return folder / "digits.pt"


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, count: int, size: int = 32, deep: bool = False, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (count, size // 4, size // 4, 3), dtype=np.uint8)
        for i, pixels in enumerate(coarse.repeat(4, axis=1).repeat(4, axis=2)):
            folder = tmp_path / name / (f"{i % 3}/deeper" if deep else "")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i:05d}.png")
        return tmp_path / name

    return make


def test_equal_to_torch_fidelity_on_the_same_features() -> None:
    samples, real = random_features(203, 1, shift=0.3), random_features(150, 2)
    found = score(samples, DIGITS, feature_statistics(real.pool))
    fid = fid_statistics_to_metric(
        fid_features_to_statistics(samples.pool), fid_features_to_statistics(real.pool), False
    )
    isc = isc_features_to_metric(samples.logits)
    assert found.distance == pytest.approx(fid["frechet_inception_distance"], rel=1e-6)
    assert found.score_mean == pytest.approx(isc["inception_score_mean"], rel=1e-6)
    assert found.score_std == pytest.approx(isc["inception_score_std"], rel=1e-6)
    assert found.num_images == 203


def test_distance_equals_an_independent_matrix_square_root() -> None:
    first, second = (random_features(300, seed, dim=24, shift=seed).pool for seed in (3, 4))
    x, y = first.double().numpy(), second.double().numpy()
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root.real)
    found = frechet_distance(feature_statistics(first), feature_statistics(second))
    assert found == pytest.approx(expected, rel=1e-6)


def test_distance_of_diagonal_gaussians() -> None:
    first = Statistics(np.array([0.0, 1.0]), np.diag([1.0, 4.0]))
    second = Statistics(np.array([3.0, 1.0]), np.diag([4.0, 9.0]))
    assert frechet_distance(first, second) == pytest.approx(9 + (1 - 2) ** 2 + (2 - 3) ** 2)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-12)


def test_score_of_certain_and_of_clueless_classifiers() -> None:
    pool = random_features(1000, 0).pool
    certain = torch.nn.functional.one_hot(torch.arange(1000) % 10, 10) * 200.0
    clueless = torch.zeros(1000, 10)
    assert score(Features(pool, certain), DIGITS).score_mean == pytest.approx(10, rel=0.1)
    assert score(Features(pool, clueless), DIGITS).score_mean == pytest.approx(1)
    assert score(Features(pool, clueless), DIGITS).distance is None


def test_fewer_images_than_splits(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = score(random_features(4, 0), DIGITS)
    assert np.isfinite(found.score_mean)
    assert "4 splits, not 10" in caplog.text
    assert "4 images for 16-dimensional features" in caplog.text


def test_enough_images_give_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        score(random_features(16, 0), DIGITS)
    assert caplog.text == ""


@pytest.mark.parametrize("part", ["pool", "logits"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_raise(part: str, value: float) -> None:
    features = random_features(20, 0)
    getattr(features, part)[7, 2] = value
    with pytest.raises(ValueError, match="in 1 of 20 images, the first is image 7"):
        score(features, DIGITS)


def test_one_image_raises() -> None:
    with pytest.raises(ValueError, match="found 1 images, expected at least 2"):
        score(random_features(1, 0), DIGITS)


def test_names_are_honest() -> None:
    samples, reference = random_features(1000, 0), feature_statistics(random_features(50, 1).pool)
    digits = score(samples, DIGITS, reference)
    assert digits.lines()[0].startswith("Frechet distance (digit features) (1,000 samples): ")
    assert digits.lines()[1].startswith("Inception-style score (digit classifier) (1,000 samples)")
    assert list(digits.json()) == [
        "num_images",
        "frechet_distance_digits",
        "classifier_score_digits_mean",
        "classifier_score_digits_std",
    ]
    assert "fid" not in " ".join([*digits.lines(), *digits.json()]).lower()

    inception = score(samples, KINDS["inception"], reference)
    assert inception.lines()[0].startswith("FID (1,000 samples): ")
    assert inception.json() == {
        "num_images": 1000,
        "fid": inception.distance,
        "inception_score_mean": inception.score_mean,
        "inception_score_std": inception.score_std,
    }
    published = score(random_features(50_000, 0, dim=2), KINDS["inception"])
    assert published.lines()[0].startswith("IS: ")


@pytest.mark.parametrize("deep", [False, True])
def test_end_to_end_equals_torch_fidelity(
    digits: FeatureExtractor, make_folder: Callable[..., Path], tmp_path: Path, deep: bool
) -> None:
    samples, real = make_folder("samples", 40, seed=1), make_folder("real", 30, deep=deep, seed=2)
    weights = weights_path(tmp_path)
    torch.save({"model": digits.network.classifier.state_dict()}, weights)
    theirs = calculate_metrics(samples, real, "lpd-digits", weights)
    reference = load_reference(real, digits, image_size=32, batch_size=7)
    features = folder_features(sorted(samples.glob("*.png")), digits, 32, batch_size=16)
    ours = score(features, digits.kind, reference)
    assert ours.distance == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours.score_mean == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert ours.score_std == pytest.approx(theirs["inception_score_std"], rel=1e-4)


@pytest.mark.slow
def test_end_to_end_with_inception(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    weights = tmp_path / "inception.pth"
    save_random_inception(weights)
    samples, real = make_folder("samples", 16, seed=1), make_folder("real", 12, seed=2)
    theirs = calculate_metrics(samples, real, None, weights)
    extractor = build_extractor("inception", str(weights), torch.device("cpu"))
    assert extractor is not None
    reference = load_reference(real, extractor, image_size=32)
    features = folder_features(sorted(samples.glob("*.png")), extractor, 32)
    ours = score(features, extractor.kind, reference)
    assert ours.distance == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours.score_mean == pytest.approx(theirs["inception_score_mean"], rel=1e-4)


def calculate_metrics(samples: Path, real: Path, extractor: str | None, weights: Path) -> dict:
    return torch_fidelity.calculate_metrics(
        input1=str(samples),
        input2=str(real),
        isc=True,
        fid=True,
        feature_extractor=extractor,
        feature_extractor_weights_path=str(weights),
        samples_find_deep=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )


def test_saved_statistics_are_a_reference(digits: FeatureExtractor, tmp_path: Path) -> None:
    statistics = feature_statistics(random_features(100, 0, dim=64).pool)
    statistics.save(tmp_path / "stats.npz")
    found = load_reference(tmp_path / "stats.npz", digits, image_size=32)
    assert np.array_equal(found.mu, statistics.mu)
    assert np.array_equal(found.sigma, statistics.sigma)
    assert [path.name for path in tmp_path.iterdir()] == ["stats.npz"]


def test_single_precision_reference_is_taken(digits: FeatureExtractor, tmp_path: Path) -> None:
    samples = random_features(100, 0, dim=64)
    statistics = feature_statistics(random_features(100, 1, dim=64).pool)
    path = tmp_path / "stats.npz"
    np.savez(path, mu=statistics.mu.astype("f4"), sigma=statistics.sigma.astype("f4"))
    found = score(samples, DIGITS, load_reference(path, digits, image_size=32)).distance
    assert found == pytest.approx(score(samples, DIGITS, statistics).distance, rel=1e-4)


MU, SIGMA = np.zeros(64), np.eye(64)


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"mu": MU}, "holds no sigma"),
        ({"arr_0": MU}, "holds no mu"),
        ({"mu": np.zeros(2048), "sigma": SIGMA}, r"mu is float64 of shape (2048,)"),
        ({"mu": MU, "sigma": MU}, r"sigma is float64 of shape (64,)"),
        ({"mu": MU.astype(int), "sigma": SIGMA}, "mu is int64"),
        ({"mu": MU.astype(object), "sigma": SIGMA}, "cannot be read (Object arrays"),
        ({"mu": MU + np.nan, "sigma": SIGMA}, "mu holds NaN or infinity"),
        ({"mu": MU, "sigma": SIGMA + np.inf}, "sigma holds NaN or infinity"),
    ],
)
def test_unusable_statistics(
    digits: FeatureExtractor, tmp_path: Path, arrays: dict[str, np.ndarray], found: str
) -> None:
    path = tmp_path / "stats.npz"
    np.savez(path, **arrays)
    message = reference_message(path, digits)
    assert message.startswith(f"--fid_stats: {path}")
    assert found in message
    assert "expected an .npz with mu (64,) and sigma (64, 64)" in message


def test_unreadable_statistics(digits: FeatureExtractor, tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    np.savez(path, mu=MU, sigma=SIGMA)
    whole = path.read_bytes()
    for content in (b"", b"not an archive", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert f"--fid_stats: {path} cannot be read" in reference_message(path, digits)
    np.save(tmp_path / "mu.npy", MU)
    assert "cannot be read" in reference_message(tmp_path / "mu.npy", digits)
    assert "does not exist" in reference_message(tmp_path / "absent.npz", digits)


def test_unusable_folders(
    digits: FeatureExtractor, tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds 0 images" in reference_message(tmp_path / "empty", digits)
    folder = make_folder("real", 3)
    (folder / "00001.png").write_bytes(b"damaged")
    message = reference_message(folder, digits)
    assert message.startswith("--fid_stats: ") and str(folder / "00001.png") in message


def reference_message(path: Path, extractor: FeatureExtractor) -> str:
    with pytest.raises(UserError) as caught:
        load_reference(path, extractor, image_size=32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_of_larger_images_is_cropped(
    digits: FeatureExtractor, make_folder: Callable[..., Path]
) -> None:
    found = load_reference(make_folder("large", 4, size=64), digits, image_size=32)
    assert found.sigma.shape == (64, 64)
