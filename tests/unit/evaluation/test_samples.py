from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import samples
from evaluation.samples import SampleFolder, kept_share, make_share
from util.device import HostCopy
from util.errors import UserError
from util.images import MADE_BY

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
IDS = np.array([7, 3, 123_456, 0, 1, 2])


@pytest.fixture
def make(monkeypatch):

    def start(model: object, evaluation: object, ids: np.ndarray) -> HostCopy:
        if 99 in ids:
            raise KeyError
        return HostCopy(torch.from_numpy(IMAGES[np.searchsorted(np.sort(IDS), ids)]))

    monkeypatch.setattr(samples, "_start_batch", start)
    evaluation = SimpleNamespace(batch_size=4, scoring=None)
    return lambda folder, ids: make_share(None, evaluation, folder, np.array(ids))


@pytest.mark.parametrize("max_waiting", [0, 100])
def test_every_image_is_written_under_its_id(make, tmp_path, max_waiting, monkeypatch):
    monkeypatch.setattr(samples, "MAX_WAITING", max_waiting)
    batches = make(SampleFolder(tmp_path, "these settings"), IDS)
    assert [ids.tolist() for ids, _ in batches] == [IDS[:4].tolist(), IDS[4:].tolist()]
    names = [f"{image_id:05d}.png" for image_id in sorted(IDS)]
    assert names[-1] == "123456.png" and {path.name for path in tmp_path.iterdir()} == {*names}
    for name, image in zip(names, IMAGES, strict=True):
        found = Image.open(tmp_path / name)
        assert np.array_equal(np.asarray(found), image)
        assert found.info == {MADE_BY: "these settings"}


def test_a_failed_write_is_raised_unless_something_else_failed(make, tmp_path):
    missing = SampleFolder(tmp_path / "missing", "")
    with pytest.raises(OSError, match="missing"):
        make(missing, IDS)
    with pytest.raises(KeyError):
        make(missing, [*range(8), 99])
    assert len(make(None, IDS)) == 2 and not list(tmp_path.iterdir())


def test_an_image_is_read_only_as_it_was_written(tmp_path):
    folder, file = SampleFolder(tmp_path, "these settings"), tmp_path / "00000.png"
    folder.write(0, IMAGES[0])
    assert np.array_equal(folder.read(0), IMAGES[0])
    content = file.read_bytes()
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        for damaged in (flipped, content[:at]):
            file.write_bytes(damaged)
            with pytest.raises(UserError, match="is damaged or of other settings"):
                folder.read(0)
    file.write_bytes(content + b"\0")
    with pytest.raises(UserError):
        folder.read(0)


def test_whole_images_of_before_are_kept_and_all_are_counted(tmp_path, bars):
    folder = SampleFolder(tmp_path, "these settings")
    for image_id, image in enumerate(IMAGES):
        folder.write(image_id, image)
    SampleFolder(tmp_path, "others").write(2, IMAGES[2])
    evaluation = SimpleNamespace(batch_size=4, scoring=None, num_images=5)
    kept = kept_share(evaluation, folder)
    assert [(ids.tolist(), features) for ids, features in kept] == [([0, 1, 3], None), ([4], None)]
    assert [(bar.n, bar.total, bar.unit) for bar in bars] == [(5, 5, "image")]


def test_an_archive_holds_all_images_of_these_settings(tmp_path):
    folder, archive = SampleFolder(tmp_path, "these settings"), tmp_path / "x.npz"
    for image_id, image in enumerate(IMAGES):
        folder.write(image_id, image)
    folder.write_archive(archive, 6)
    with np.load(archive, allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0"] and arrays["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(arrays["arr_0"], IMAGES)
    archive.unlink()
    with pytest.raises(OSError, match="00006"):
        folder.write_archive(archive, 7)
    SampleFolder(tmp_path, "others").write(5, IMAGES[5])
    with pytest.raises(UserError, match=r"00005.png is damaged or of other settings"):
        folder.write_archive(archive, 6)
    assert not list(tmp_path.glob("*x.npz*"))
