import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity

from evaluation import references
from evaluation.features import KINDS, FeatureExtractor, build_extractor, extract
from evaluation.metrics import Reference, Statistics, feature_statistics, save_reference, score
from evaluation.references import open_reference
from tests.unit.evaluation.scoring_files import (
    CPU,
    assert_made_of,
    assert_same_scores,
    digits_extractor,
    random_images,
    write_digits,
    write_folder,
)
from tests.unit.evaluation.test_features import save_random_inception
from util.errors import UserError

DIGITS = KINDS["digits"]
MU, SIGMA = np.zeros(64), np.eye(64)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return digits_extractor(tmp_path_factory.mktemp("weights") / "digits.pt")


def load(path: Path, extractor: FeatureExtractor, *needs: str) -> Reference:
    return open_reference(path, extractor.kind, 32, needs or ("pool",)).load(extractor, 7)


@pytest.mark.parametrize(
    ("name", "counts", "metrics"),
    [
        ("digits", (1010, 1005), "fid is kid prc"),
        pytest.param("inception", (16, 12), "fid sfid is prc", marks=pytest.mark.slow),
    ],
)
def test_scores_are_those_of_torch_fidelitys_own_command(tmp_path, name, counts, metrics):
    """From two folders, one of them deep."""
    weights = tmp_path / "weights.pth"
    (write_digits if name == "digits" else save_random_inception)(weights)
    images = random_images(counts[0], seed=1), random_images(counts[1], seed=2) // 2
    real = write_folder(tmp_path / "real", images[1], deep=True)
    extractor = build_extractor(name, str(weights), CPU, spatial="sfid" in metrics)
    pool = extractor.kind.pool_layer
    theirs = torch_fidelity.calculate_metrics(
        input1=str(write_folder(tmp_path / "samples", images[0])),
        input2=str(real),
        **dict.fromkeys(("isc", "fid", "prc", "samples_find_deep", "save_cpu_ram"), True),
        kid="kid" in metrics,
        feature_extractor=extractor.kind.registered_name,
        feature_extractor_weights_path=str(weights),
        feature_layer_isc="logits_unbiased",
        **{f"feature_layer_{metric}": pool for metric in ("fid", "kid", "prc")},
        **dict.fromkeys(("cuda", "cache", "verbose"), False),
    )
    reference = load(real, extractor, "features", *extractor.kind.dims)
    found = [extract(extractor, torch.from_numpy(part)) for part in images]
    ours = score(found[0], extractor.kind, reference, tuple(metrics.split()))
    theirs["fid"] = theirs["frechet_inception_distance"]
    if "sfid" in metrics:
        whole = Reference(spatial=feature_statistics(found[1].spatial))
        [theirs["sfid"]] = score(found[0], extractor.kind, whole, ("sfid",)).tags().values()
    assert_same_scores(ours, theirs, rel=1e-4)


def test_folder_archive_and_saved_file_are_the_same_reference(digits, tmp_path):
    images = random_images(70)
    expected = extract(digits, torch.from_numpy(images))
    folder = write_folder(tmp_path / "real", images)
    np.savez(tmp_path / "archive.npz", arr_0=images)
    save_reference(load(folder, digits, "pool", "features"), tmp_path / "saved.npz")
    for path in (folder, tmp_path / "archive.npz", tmp_path / "saved.npz"):
        found = load(path, digits, "pool", "features")
        assert_made_of(found["pool"].mu, found["pool"].sigma, found["features"], expected.pool)


def test_a_reference_is_kept_by_content(digits, tmp_path, monkeypatch, bars, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = write_folder(tmp_path / "real", random_images(70))
    first = load(folder, digits)
    assert [(bar.n, bar.total, bar.unit) for bar in bars] == [(70, 70, "file"), (70, 70, "image")]
    folder = folder.rename(tmp_path / "moved")

    def is_made(extractor: FeatureExtractor = digits, *needs: str, size: int = 32) -> bool:
        bars.clear()
        open_reference(folder, DIGITS, size, needs or ("pool",)).load(extractor)
        return [bar.unit for bar in bars] == ["file", "image"]

    assert not is_made() and f"pool of {folder}: kept in {tmp_path}" in caplog.text
    again = load(folder, digits)
    assert all(np.array_equal(*parts) for parts in zip(first["pool"], again["pool"], strict=True))
    assert is_made(digits, "pool", "features") and not is_made(digits, "features")
    assert is_made(digits_extractor(tmp_path / "other.pt", seed=1))
    assert is_made(size=30) and not is_made(size=30)
    write_folder(folder, random_images(1, seed=9))  # one image is another
    assert is_made() and not np.array_equal(load(folder, digits)["pool"].mu, first["pool"].mu)
    for library in ("torch-fidelity", "Pillow"):
        others = dict.fromkeys(("torch-fidelity", "Pillow"), "1") | {library: "2"}
        monkeypatch.setattr(references.metadata, "version", others.get)
        assert is_made() and not is_made()


def test_a_kept_reference_is_damaged_or_unwritable(digits, tmp_path, monkeypatch, bars, caplog):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = write_folder(tmp_path / "real", random_images(70))
    first = load(folder, digits)
    [file] = (tmp_path / "home" / "lpd_references").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for _ in range(2):  # made anew once
        assert np.array_equal(load(folder, digits)["pool"].mu, first["pool"].mu)
    assert caplog.text.count("it is made anew") == 1
    monkeypatch.setenv("TORCH_HOME", str(file / "where a folder should be"))
    assert np.array_equal(load(folder, digits)["pool"].mu, first["pool"].mu)
    assert "the reference is not kept: " in caplog.text
    assert [bar.unit for bar in bars].count("image") == 3


def test_adms_files(digits, tmp_path):
    """Their statistics are of more images than they hold: they are not made of these."""
    path, mu = tmp_path / "VIRTUAL_imagenet.npz", np.arange(64.0)
    np.savez(path, arr_0=random_images(12), mu=mu.astype("f4"), sigma=np.eye(64, dtype="f4"))
    found = load(path, digits, "pool", "features")
    assert np.array_equal(found["pool"].mu, mu)
    assert found["pool"].mu.dtype == found["pool"].sigma.dtype == np.float64
    assert len(found["features"]) == 12
    message = r"^.* no mu_s, expected an .npz with mu_s \(2023,\) and sigma_s \(2023, 2023\).*$"
    with pytest.raises(UserError, match=message):
        open_reference(path, KINDS["inception"], 32, ("spatial",))
    spatial = Statistics(np.arange(2023.0), np.eye(2023))
    save_reference(Reference(pool=Statistics(mu, np.eye(64)), spatial=spatial), path)
    with np.load(path) as saved:
        assert sorted(saved) == ["mu", "mu_s", "sigma", "sigma_s"]
    plan = open_reference(path, KINDS["inception"], 256, ("spatial",))
    assert plan.source is None and np.array_equal(plan.known["spatial"].mu, spatial.mu)


def test_features_that_are_not_finite_are_refused_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    extractor = digits_extractor(tmp_path / "digits.pt")
    with torch.no_grad():
        extractor.network.classifier.body[-2].bias[0] = torch.nan
    with pytest.raises(UserError, match=r"^--fid_stats: images 0 to 4 of .*real: found NaN"):
        load(write_folder(tmp_path / "real", random_images(5)), extractor)
    assert not (tmp_path / "home").exists()


def test_singular_statistics_give_a_warning(tmp_path, caplog):
    for sigma, warned in ((SIGMA, False), (np.diag([1.0] * 9 + [0.0] * 55), True)):
        np.savez(tmp_path / "a.npz", mu=MU, sigma=sigma)
        open_reference(tmp_path / "a.npz", DIGITS, 32, {"pool"})
        assert ("rank 9 of 64" in caplog.text) == warned


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"mu": MU, "sigma": MU}, r"sigma is float64 of shape (64,)"),
        ({"mu": MU.astype(str), "sigma": SIGMA}, "mu is <U32"),
        ({"mu": MU, "sigma": -SIGMA}, "sigma is no covariance"),
        ({"features": np.zeros((9, 64))}, "features is float64 of shape (9, 64)"),
        ({"features": np.zeros((9, 65), "f4")}, "features is float32 of shape (9, 65)"),
        ({"features": np.full((9, 64), np.nan, "f4")}, "features holds NaN or infinity"),
    ],
)
def test_unusable_files(tmp_path, arrays, found):
    path = tmp_path / "stats.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=rf"^--fid_stats: {path}.*{re.escape(found)}.*$"):
        open_reference(path, DIGITS, 32, ["features" if "features" in arrays else "pool"])
