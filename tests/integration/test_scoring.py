import json
from pathlib import Path

import numpy as np
import pytest
import torch

import main_lpd
from evaluation.features import extract
from evaluation.metrics import Reference, feature_statistics, score
from tests.commands import results_in, run_command, succeed
from tests.unit.evaluation.scoring_files import (
    assert_made_of,
    digits_extractor,
    random_images,
    write_digits,
    write_folder,
)

SAMPLES, REAL = random_images(1007, seed=1), random_images(1003, seed=2) // 2


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two sets of images, each as a folder and as an archive, and a network."""
    folder = tmp_path_factory.mktemp("files")
    write_digits(folder / "digits.pth")
    for name, images in (("samples", SAMPLES), ("real", REAL)):
        write_folder(folder / name, images)
        np.savez(folder / f"{name}.npz", arr_0=images)
    return folder


def flags(files: Path, *others: object) -> list[str]:
    network = ["--feature_extractor", "digits", "--device", "cpu", "--num_workers", "0"]
    network += ["--feature_extractor_weights", files / "digits.pth"]
    return [str(part) for part in (*network, *others)]


def results(images: Path) -> dict:
    return json.loads(images.with_name(f"{images.stem}-metrics.json").read_text())


@pytest.mark.parametrize(
    ("images", "reference", "metrics", "processes"),
    [
        ("samples", "real.npz", "fid,is,kid,prc", 2),
        ("samples.npz", "real", "fid,is,prc", None),
    ],
)
def test_images_are_scored_without_a_model(files, tmp_path, images, reference, metrics, processes):
    line = ["--images", files / images, "--fid_stats", files / reference, "--metrics", metrics]
    said = succeed("main_lpd.py", *flags(files, *line), processes=processes).stderr
    found = results(files / images)
    extractor = digits_extractor(tmp_path / "digits.pt")
    samples, real = (extract(extractor, torch.from_numpy(part)) for part in (SAMPLES, REAL))
    real = Reference(pool=feature_statistics(real.pool), features=real.pool)
    expected = score(samples, extractor.kind, real, tuple(metrics.split(","))).json()
    del expected["scores"]
    assert found["num_images"] == 1007 and found["image_size"] == 32
    assert found["images"] == str(files / images) and found["reference"] == str(files / reference)
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    for line in found["scores"]:
        assert line in said and "-1007" in line


def test_statistics_of_two_processes_serve_without_their_images(
    files, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    made = tmp_path / "made.npz"
    line = flags(files, "--images", files / "real", "--features", "--img_size", "32")
    said = succeed("scripts/compute_stats.py", *line, "--out", made, processes=2).stderr
    assert "mu, sigma, features of 1,003 images in" in said
    features = extract(digits_extractor(tmp_path / "digits.pt"), torch.from_numpy(REAL)).pool
    with np.load(made) as arrays:
        assert sorted(arrays) == ["features", "mu", "sigma"]
        assert_made_of(arrays["mu"], arrays["sigma"], arrays["features"], features)
    both = []
    for reference in (made, files / "real"):
        line = flags(files, "--images", files / "samples.npz", "--fid_stats", reference)
        main_lpd.main([*line, "--metrics", "fid,prc"])
        both.append(results(files / "samples.npz"))
        assert both[-1].pop("reference") == str(reference)
        # What two processes have kept of the images serves one.
        assert (f"pool of {reference}: kept in" in caplog.text) == (reference != made)
    assert both[0] == both[1]


def test_scores_stand_beside_the_images_or_in_the_folder_that_is_given(
    files, tmp_path, monkeypatch
):
    folder, output = write_folder(tmp_path / "theirs" / "v1.5", SAMPLES[:20]), tmp_path / "mine"
    main_lpd.main(flags(files, "--images", folder, "--output_dir", output))
    assert [path.name for path in results_in(output)] == ["v1.5-metrics.json"]
    assert list(folder.parent.iterdir()) == [folder]
    monkeypatch.chdir(folder.parent)
    main_lpd.main(flags(files, "--images", "v1.5"))
    assert {path.name for path in results_in(folder.parent)} == {"v1.5", "v1.5-metrics.json"}
    assert len(list(folder.iterdir())) == 20
    found = results(folder.parent / "v1.5.npz")
    assert "classifier_score_digits_mean" in found and found["reference"] is None


@pytest.mark.parametrize("flag", ["--images", "--fid_stats"])
def test_a_bad_image_ends_all_processes_in_one_line(files, tmp_path, flag):
    folder = write_folder(tmp_path / "samples", SAMPLES[:150])
    (folder / "00140.png").write_bytes(b"damaged")
    line = ["--images", files / "samples", flag, folder]  # the second --images counts
    result = run_command("main_lpd.py", *flags(files, *line), processes=2)
    assert result.returncode == 1
    assert result.stderr.count(f"error: {flag}: ") == 1 and "00140.png" in result.stderr
    assert not list(tmp_path.glob("*.json"))
