from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluation import samples
from evaluation.samples import SampleFolder, kept_share, make_share
from util.device import HostCopy
from util.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def test_a_failed_write_is_raised_unless_something_else_failed(tmp_path, monkeypatch):
    def start(model: object, evaluation: object, ids: np.ndarray) -> HostCopy:
        if 99 in ids:
            raise KeyError
        return HostCopy(torch.from_numpy(IMAGES[: len(ids)]))

    monkeypatch.setattr(samples, "_start_batch", start)
    evaluation = SimpleNamespace(batch_size=4)
    for blocked, last, error in ((0, 8, OSError), (8, 8, OSError), (0, 99, KeyError)):
        folder = SampleFolder(tmp_path / f"{blocked} {last}", "")
        samples.image_file(folder.path, blocked).mkdir(parents=True)
        with pytest.raises(error):
            make_share(None, evaluation, folder, np.array([*range(8), last]))
    assert len(make_share(None, evaluation, None, np.arange(6))) == 2


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
    for image_id, image in zip((0, 1, 2, 3, 123_456, 123_457), IMAGES, strict=True):
        folder.write(image_id, image)
    SampleFolder(tmp_path, "others").write(2, IMAGES[2])
    evaluation = SimpleNamespace(batch_size=4, scoring=None, num_images=123_457)
    assert [ids.tolist() for ids, _ in kept_share(evaluation, folder)] == [[0, 1, 3], [123_456]]
    assert [(bar.n, bar.total, bar.unit) for bar in bars] == [(5, 5, "image")]


def test_an_archive_holds_images_of_these_settings_or_is_not_there(tmp_path):
    folder, archive = SampleFolder(tmp_path, "these settings"), tmp_path / "x.npz"
    for image_id, image in enumerate(IMAGES):
        folder.write(image_id, image)
    with pytest.raises(OSError, match="00006"):
        folder.write_archive(archive, 7)
    SampleFolder(tmp_path, "others").write(5, IMAGES[5])
    with pytest.raises(UserError, match=r"00005.png is damaged or of other settings"):
        folder.write_archive(archive, 6)
    assert not list(tmp_path.glob("*x.npz*"))
