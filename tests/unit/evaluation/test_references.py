"""References: read from ADM's files or made of images, the same either way, kept by content."""

from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
import torch_fidelity

from evaluation import references
from evaluation.features import (
    KINDS,
    FeatureExtractor,
    Features,
    build_extractor,
    extract,
    extract_share,
    gather_features,
)
from evaluation.image_sources import open_images
from evaluation.metrics import (
    Reference,
    Statistics,
    feature_statistics,
    frechet_distance,
    save_reference,
    score,
)
from evaluation.references import cache_folder, open_reference
from tests.unit.evaluation.scoring_files import (
    CPU,
    assert_made_of,
    digits_extractor,
    random_images,
    write_digits,
    write_folder,
)
from tests.unit.evaluation.test_features import save_random_inception
from util.errors import UserError

DIGITS = KINDS["digits"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return digits_extractor(tmp_path_factory.mktemp("weights") / "digits.pt")


def load(path: Path, extractor: FeatureExtractor, *needs: str) -> Reference:
    return open_reference(path, extractor.kind, 32, needs or ("pool",)).load(extractor, 7)


def features_of(path: Path, extractor: FeatureExtractor) -> Features:
    return gather_features([*extract_share(open_images(path, "--images"), extractor, 16, 0)])


def test_end_to_end_equals_torch_fidelity(tmp_path):
    """All its scores from two folders, one of them deep, by its own command's function."""
    weights = write_digits(tmp_path / "digits.pt")
    samples = write_folder(tmp_path / "samples", random_images(1010, seed=1))
    real = write_folder(tmp_path / "real", random_images(1005, seed=2) // 2, deep=True)
    theirs = calculate_metrics(samples, real, "lpd-digits", weights, kid=True, prc=True)
    extractor = build_extractor("digits", str(weights), CPU)
    reference = load(real, extractor, "pool", "features")
    ours = score(features_of(samples, extractor), DIGITS, reference, ("fid", "is", "kid", "prc"))
    for name, value, spread in (
        ("fid", "frechet_inception_distance", None),
        ("is", "inception_score_mean", "inception_score_std"),
        ("kid", "kernel_inception_distance_mean", "kernel_inception_distance_std"),
        ("precision", "precision", None),
        ("recall", "recall", None),
    ):
        assert ours.values[name].value == pytest.approx(theirs[value], rel=1e-4), name
        if spread is not None:
            assert ours.values[name].spread == pytest.approx(theirs[spread], rel=1e-4), name


@pytest.mark.slow
def test_end_to_end_with_inception(tmp_path):
    weights = tmp_path / "inception.pth"
    save_random_inception(weights)
    samples = write_folder(tmp_path / "samples", random_images(16, seed=1))
    real = write_folder(tmp_path / "real", random_images(12, seed=2))
    theirs = calculate_metrics(samples, real, "inception-v3-compat", weights, prc=True)
    extractor = build_extractor("inception", str(weights), CPU, spatial=True)
    reference = load(real, extractor, "pool", "spatial", "features")
    found = features_of(samples, extractor)
    ours = score(found, extractor.kind, reference, ("fid", "sfid", "is", "prc"))
    assert ours.values["fid"].value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours.values["is"].value == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert ours.values["precision"].value == theirs["precision"]
    spatial = (feature_statistics(part.spatial) for part in (found, features_of(real, extractor)))
    assert ours.values["sfid"].value == pytest.approx(frechet_distance(*spatial), rel=1e-4)


def calculate_metrics(
    samples: Path, real: Path, extractor: str, weights: Path, **metrics: bool
) -> dict[str, float]:
    return torch_fidelity.calculate_metrics(
        input1=str(samples),
        input2=str(real),
        isc=True,
        fid=True,
        **metrics,
        feature_extractor=extractor,
        feature_extractor_weights_path=str(weights),
        samples_find_deep=True,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )


def test_folder_archive_and_saved_file_are_the_same_reference(digits, tmp_path):
    images = random_images(70)
    expected = extract(digits, torch.from_numpy(images))
    folder = write_folder(tmp_path / "real", images)
    np.savez(tmp_path / "archive.npz", arr_0=images)
    save_reference(load(folder, digits, "pool", "features"), tmp_path / "saved.npz")
    for path in (folder, tmp_path / "archive.npz", tmp_path / "saved.npz"):
        found = load(path, digits, "pool", "features")
        assert_made_of(found["pool"].mu, found["pool"].sigma, found["features"], expected.pool)


def test_adms_files(digits, tmp_path):
    """Their statistics are of more images than they hold: they are not made of these."""
    path, mu = tmp_path / "VIRTUAL_imagenet.npz", np.arange(64.0)
    np.savez(path, arr_0=random_images(12), mu=mu, sigma=np.eye(64))
    found = load(path, digits, "pool", "features")
    assert np.array_equal(found["pool"].mu, mu)
    assert len(found["features"]) == 12
    message = refusal(path, "spatial", kind=KINDS["inception"])
    assert "holds no mu_s, expected an .npz with mu_s (2023,) and sigma_s (2023, 2023)" in message
    spatial = Statistics(np.arange(2023.0), np.eye(2023))
    save_reference(Reference(pool=Statistics(mu, np.eye(64)), spatial=spatial), path)
    with np.load(path) as saved:
        assert sorted(saved) == ["mu", "mu_s", "sigma", "sigma_s"]
    plan = open_reference(path, KINDS["inception"], 256, ("spatial",))
    assert plan.source is None
    assert np.array_equal(plan.known["spatial"].mu, spatial.mu)


@pytest.fixture
def counted(monkeypatch):
    """One entry for each time images are read."""
    reads: list[str] = []
    make = references._make

    def count(source: object, extractor: object, parts: set[str], *rest: object) -> object:
        reads.append(",".join(sorted(parts)))
        return make(source, extractor, parts, *rest)

    monkeypatch.setattr(references, "_make", count)
    return reads


def test_a_reference_is_kept_by_content(digits, tmp_path, counted):
    folder = write_folder(tmp_path / "real", random_images(70))
    first = load(folder, digits)
    folder = folder.rename(tmp_path / "moved")
    again = load(folder, digits)
    assert counted == ["pool"]
    assert np.array_equal(first["pool"].sigma, again["pool"].sigma)
    assert load(folder, digits, "pool", "features")["features"].shape == (70, 64)
    load(folder, digits, "features")
    assert counted == ["pool", "features"]
    load(folder, digits_extractor(tmp_path / "other.pt", seed=1))
    assert counted[2:] == ["pool"]  # another network's weights
    open_reference(folder, DIGITS, 32).load(digits)  # another batch size
    assert len(counted) == 3
    write_folder(folder, random_images(1, seed=9))  # one image is another
    changed = load(folder, digits)
    assert len(counted) == 4 and not np.array_equal(changed["pool"].mu, first["pool"].mu)


def test_image_size_and_libraries_are_part_of_the_key(digits, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "real", random_images(4))

    def key(size: int = 32) -> str:
        return references._cache_key(open_images(folder, "--fid_stats", size), digits)

    keys = [key(), key(16), key(64)]
    assert key() == keys[0]
    for library in (torch_fidelity, PIL):
        monkeypatch.setattr(library, "__version__", "another")
        keys.append(key())
    assert len({*keys}) == 5


def test_a_cache_that_is_damaged_or_cannot_be_written(
    digits, tmp_path, counted, caplog, monkeypatch
):
    folder = write_folder(tmp_path / "real", random_images(70))
    first = load(folder, digits)
    (file,) = cache_folder().iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for _ in range(2):
        assert np.array_equal(load(folder, digits)["pool"].mu, first["pool"].mu)
        assert counted == ["pool", "pool"] and "it is made anew" in caplog.text
    (tmp_path / "file").write_text("where the folder should be")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    assert np.array_equal(load(folder, digits)["pool"].mu, first["pool"].mu)
    assert "the reference is not kept" in caplog.text


def test_features_that_are_not_finite_are_refused(tmp_path):
    extractor = digits_extractor(tmp_path / "digits.pt")
    with torch.no_grad():
        extractor.network.classifier.body[-2].bias[0] = torch.nan
    folder = write_folder(tmp_path / "real", random_images(5))
    with pytest.raises(UserError, match=r"^--fid_stats: images 0 to 4 of .*real: found NaN"):
        load(folder, extractor)
    assert not cache_folder().exists()


def test_single_precision_reference_is_taken(digits, tmp_path):
    samples = Features(torch.randn(100, 64), torch.randn(100, 10))
    statistics = feature_statistics(torch.randn(100, 64) + 1)
    path = tmp_path / "stats.npz"
    np.savez(path, mu=statistics.mu.astype("f4"), sigma=statistics.sigma.astype("f4"))
    found = score(samples, DIGITS, load(path, digits)).values["fid"].value
    expected = score(samples, DIGITS, Reference(pool=statistics)).values["fid"].value
    assert found == pytest.approx(expected, rel=1e-4)


MU, SIGMA = np.zeros(64), np.eye(64)


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"other": MU}, "holds no mu"),
        ({"mu": MU, "sigma": MU}, r"sigma is float64 of shape (64,)"),
        ({"mu": MU.astype(int), "sigma": SIGMA}, "mu is int64"),
        ({"mu": MU, "sigma": SIGMA + np.inf}, "sigma holds NaN or infinity"),
        ({"mu": MU, "sigma": -SIGMA}, "sigma is no covariance"),
        ({"features": np.zeros((9, 64))}, "features is float64 of shape (9, 64)"),
        ({"features": np.zeros((9, 65), "f4")}, "features is float32 of shape (9, 65)"),
        ({"features": np.full((9, 64), np.nan, "f4")}, "features holds NaN or infinity"),
    ],
)
def test_unusable_files(tmp_path, arrays, found):
    """What the table of bad input does not have."""
    path = tmp_path / "stats.npz"
    np.savez(path, **arrays)
    message = refusal(path, "features" if "features" in arrays else "pool")
    assert message.startswith(f"--fid_stats: {path}") and found in message


def refusal(path: Path, *needs: str, kind: object = DIGITS) -> str:
    with pytest.raises(UserError) as caught:
        open_reference(path, kind, 32, needs)
    assert "\n" not in str(caught.value)
    return str(caught.value)
