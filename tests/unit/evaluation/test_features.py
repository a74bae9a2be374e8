import socket
import threading
from dataclasses import replace
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity_inception
from torch import nn
from torch_fidelity.utils import create_feature_extractor

from evaluation import features, fidelity
from evaluation.digits import DigitsClassifier
from evaluation.features import build_extractor, extract
from tests.unit.evaluation.scoring_files import CPU, digits_extractor
from util.errors import UserError

FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"


def save_random_inception(path: Path) -> None:
    """Random weights in the published layout, scaled so that activations do not vanish."""
    network_class = fidelity_inception.FeatureExtractorInceptionV3
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity_inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network_class, "load_state_dict", lambda *_: None)
        network = network_class("inception-v3-compat", ["2048"])
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)


def test_digits_features_and_both_layouts(tmp_path):
    extractor = digits_extractor(tmp_path / "digits.pt")
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    classifier = DigitsClassifier()
    classifier.load_state_dict(torch.load(tmp_path / "digits.pt", weights_only=True)["model"])
    pool = classifier.body(images.float() / 127.5 - 1)
    for given in (images, images.permute(0, 2, 3, 1)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = extract(extractor, given)
        assert torch.equal(found.pool, pool) and torch.equal(found.logits, classifier.head(pool))
        assert not found.pool.requires_grad


def test_inception_is_torch_fidelitys_and_features_of_sfid_are_adms(tmp_path):
    """The first 7 channels of mixed_6/conv after ReLU, (17, 17, 7) flattened; see its module."""
    save_random_inception(tmp_path / FILE_NAME)
    extractor = build_extractor("inception", str(tmp_path / FILE_NAME), CPU, spatial=True)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    inputs = []
    convolution = extractor.network.Mixed_6d.branch1x1
    hook = convolution.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    found = extract(extractor, images)
    hook.remove()
    normed = convolution.bn(convolution.conv(inputs[0]))
    assert normed.shape == (3, 192, 17, 17) and (normed < 0).any()
    # Row, column, channel: the way TensorFlow lays an activation out and ADM flattens it.
    for image, row, column, channel in ((0, 0, 0, 0), (1, 0, 0, 6), (2, 3, 16, 2), (2, 16, 16, 6)):
        place = (row * 17 + column) * 7 + channel
        expected = normed[image, channel, row, column].clamp(min=0)
        assert found.spatial[image, place] == pytest.approx(expected.item(), abs=1e-6)
    assert found.spatial.shape == (3, 2023) and found.spatial.dtype == torch.float32
    without = extract(replace(extractor, spatial=False), images)
    assert without.spatial is None and torch.equal(without.pool, found.pool)
    assert not convolution._forward_hooks
    theirs = create_feature_extractor(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        cuda=False,
        feature_extractor_weights_path=str(tmp_path / FILE_NAME),
        verbose=False,
    )
    pool, logits = theirs(images)
    assert torch.equal(found.pool, pool) and torch.equal(found.logits, logits)
    assert pool.shape == (3, 2048) and logits.shape == (3, 1008) and pool.std() > 1e-3


@pytest.mark.parametrize("name", ["inception", "digits"])
def test_foreign_weights(tmp_path, name):
    path = tmp_path / "weights.pt"
    for content in ({"model": nn.Linear(2, 2).state_dict()}, {"epoch": 3}):
        torch.save(content, path)
        expected = f"^--feature_extractor_weights: {path} does not hold the weights of .{{,300}}$"
        with pytest.raises(UserError, match=expected):
            build_extractor(name, str(path), CPU)


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ("none", ".*refused"),
        ("silent", ".*timed out"),
        ("garbage", "what arrived is damaged"),
        ("missing", "File not found"),
    ],
)
def test_a_download_that_fails_is_one_line_leaving_nothing(tmp_path, monkeypatch, server, reason):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(features, "NETWORK_TIMEOUT", 0.2 if server == "silent" else 10)
    folder = tmp_path / "hub" / "checkpoints"
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / FILE_NAME).write_text("<html>log in first</html>")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with HTTPServer(("127.0.0.1", 0), handler) as http:
        if server == "none":
            http.server_close()
        elif server != "silent":
            threading.Thread(target=http.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}/{server}/{FILE_NAME}"
        monkeypatch.setattr(fidelity, "URL_INCEPTION_V3", url)
        message = f"^--feature_extractor_weights: the Inception weights are not at {folder}/"
        message += rf"{FILE_NAME} and could not be downloaded \({reason}\); "
        message += f"expected the file {FILE_NAME}, or --feature_extractor none$"
        with pytest.raises(UserError, match=message):
            build_extractor("inception", None, CPU)
    assert list(folder.iterdir()) == []
    assert socket.getdefaulttimeout() is None
