from functools import reduce

import numpy as np
import pytest
import torch
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc
from torch_fidelity.utils import DEFAULTS

from evaluation import metrics
from evaluation.features import KINDS, ExtractorKind, Features
from evaluation.metrics import Moments, Reference, Score, Scores, Statistics, score
from tests.unit.evaluation.scoring_files import assert_same_scores

DIGITS, INCEPTION = KINDS["digits"], KINDS["inception"]
ALL = ("fid", "sfid", "is", "kid", "prc")


def random_features(count: int, seed: int, dim: int = 16, shift: float = 0.0) -> Features:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((dim, dim)) / dim**0.5
    pool = rng.standard_normal((count, dim)) @ mixing + shift
    spatial = rng.standard_normal((count, dim)) @ mixing + 2 * shift
    logits = 3 * rng.standard_normal((count, 10))
    return Features(*(torch.from_numpy(part).float() for part in (pool, logits, spatial)))


def reference_of(features: Features) -> Reference:
    pool, spatial = map(metrics.feature_statistics, (features.pool, features.spatial))
    return Reference(pool=pool, spatial=spatial, features=features.pool)


def test_equal_to_torch_fidelity_on_the_same_features():
    samples, real = random_features(1203, 1, shift=0.3), random_features(1050, 2)
    found = score(samples, INCEPTION, reference_of(real), ALL)
    assert found.num_images == 1203 and list(found.values) == [*ALL[:4], "precision", "recall"]
    theirs = {}
    for name, part in (("fid", "pool"), ("sfid", "spatial")):
        sides = getattr(samples, part), getattr(real, part)
        sides = map(metric_fid.fid_features_to_statistics, sides)
        [theirs[name]] = metric_fid.fid_statistics_to_metric(*sides, verbose=False).values()
    theirs |= metric_isc.isc_features_to_metric(samples.logits)
    theirs |= metric_kid.kid_features_to_metric(samples.pool, real.pool, verbose=False)
    theirs |= metric_prc.prc_features_to_metric(samples.pool, real.pool, verbose=False)
    assert 0 < theirs["precision"] < 1 and 0 < theirs["recall"] < 1
    assert_same_scores(found, theirs, rel=1e-6)


@pytest.mark.parametrize(("samples", "real"), [(500, 400), (30, 500), (30, 40)])
def test_the_distance_is_exact_and_singular_covariances_give_a_warning(caplog, samples, real):
    """The exact one by singular values: tr (S T)^(1/2) is the nuclear norm of X^T Y."""
    x, y = (random_features(count, count, dim=64, shift=count / 900) for count in (samples, real))
    found = score(x, INCEPTION, reference_of(y), ("fid",)).values["fid"].value
    a, b = (part.pool.double() for part in (x, y))
    p, q = ((part - part.mean(0)) / (len(part) - 1) ** 0.5 for part in (a, b))
    squares = (a.mean(0) - b.mean(0)).square().sum() + p.square().sum() + q.square().sum()
    expected = squares - 2 * torch.linalg.svdvals(p @ q.T).sum()
    assert found == pytest.approx(float(expected), rel=1e-6)
    assert ("30 images for 64-dimensional features" in caplog.text) == (samples == 30)
    assert bool(caplog.records) == (samples == 30)


def test_a_score_of_no_more_images_than_splits_gives_a_warning(caplog):
    for count in (4, 10):
        found = score(random_features(count, 0), DIGITS, metrics=("is",)).values
        assert found["is"].value == pytest.approx(1)
        assert f"Inception-style score of {count} images: a split each, which" in caplog.text


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_score_that_is_no_number_is_refused():
    far = Reference(pool=Statistics(np.full(16, 1e200), np.eye(16)))
    with pytest.raises(ValueError, match="found Frechet distance (nan|inf), expected"):
        score(random_features(50, 0), DIGITS, far, ("fid",))
    logits = torch.nn.functional.one_hot(torch.arange(20) % 10, 10) * 1e4
    with pytest.raises(ValueError, match="found Inception-style score nan, expected features"):
        score(Features(random_features(20, 0).pool, logits), DIGITS, metrics=("is",))


@pytest.mark.parametrize(
    ("part", "metric"),
    [("pool", "fid"), ("spatial", "sfid"), ("logits", "is"), ("pool", "kid"), ("pool", "prc")],
)
def test_features_that_are_not_finite_raise(part, metric):
    good, bad = random_features(1000, 1), random_features(1000, 0)
    getattr(bad, part)[7, 2] = torch.inf if metric == "fid" else torch.nan
    with pytest.raises(ValueError, match="in 1 of 1000 images, the first is image 7"):
        score(bad, INCEPTION, reference_of(good), (metric,))
    if metric in ("kid", "prc"):
        with pytest.raises(ValueError, match="the first is image 7"):
            score(good, INCEPTION, Reference(features=bad.pool), (metric,))


def test_the_fewest_images_that_can_be_scored():
    neighbours, subset = DEFAULTS["prc_neighborhood"], DEFAULTS["kid_subset_size"]
    for name, fewest in {"fid": 2, "is": 2, "prc": neighbours + 1, "kid": subset}.items():
        metrics.check_metrics((name,), DIGITS, fewest)
        with pytest.raises(ValueError, match=f"{name} of .* is not defined, expected at least"):
            metrics.check_metrics((name,), DIGITS, fewest - 1)
    features = random_features(4, 0)
    score(features, DIGITS, Reference(features=features.pool), ("prc",))


def made_scores(kind: ExtractorKind, count: int) -> Scores:
    spreads = {"is": 0.25, "kid": 0.25}
    return Scores(kind, count, {name: Score(1.5, spreads.get(name)) for name in kind.names})


@pytest.mark.parametrize(
    ("count", "suffix"), [(50_000, ""), (5000, "-5K"), (1234, "-1234"), (100, "-100")]
)
def test_results_are_named_with_their_count(count, suffix):
    """Everywhere: lines, JSON (in words, and as a number beside), TensorBoard tags."""
    scores = made_scores(INCEPTION, count)
    lines = [f"{title}{suffix}: 1.5" for title in ("FID", "sFID", "IS", "KID", "Precision")]
    lines[2:4] = [f"{line} ± 0.25" for line in lines[2:4]]
    assert scores.lines() == [*lines, f"Recall{suffix}: 1.5"]
    keys = "fid sfid inception_score_mean inception_score_std kid_mean kid_std precision recall"
    by_key = {key: 0.25 if key.endswith("_std") else 1.5 for key in keys.split()}
    assert scores.json() == {"num_images": count, **by_key, "scores": scores.lines()}
    assert scores.tags() == {f"{key}{suffix}": value for key, value in by_key.items()}


def test_the_digits_have_names_of_their_own():
    scores = made_scores(DIGITS, 1000)
    assert scores.lines()[:2] == [
        "Frechet distance-1K (digit features): 1.5",
        "Inception-style score-1K (digit classifier): 1.5 ± 0.25",
    ]
    keys = "frechet_distance_digits classifier_score_digits_mean classifier_score_digits_std "
    keys += "kernel_distance_digits_mean kernel_distance_digits_std precision_digits recall_digits"
    assert list(scores.json()) == ["num_images", *keys.split(), "scores"]
    words = " ".join([*scores.lines(), *scores.json(), *scores.tags()]).lower()
    assert "fid" not in words and "kid" not in words


@pytest.mark.parametrize("sizes", [(200,), (1, 64, 35, 100)])
def test_moments_are_the_statistics_of_the_whole_and_warn_of_few_images(sizes, caplog):
    features = random_features(200, 5, dim=24, shift=50).pool
    found = reduce(Moments.merged, map(Moments.of, features.split(sizes))).statistics()
    whole = features.double().numpy()
    np.testing.assert_allclose(found.mu, whole.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.sigma, np.cov(whole, rowvar=False), rtol=1e-9, atol=1e-12)
    assert np.isfinite(Moments.of(torch.ones(3, 4)).statistics().sigma).all()
    assert "3 images for 4-dimensional features" in caplog.text
