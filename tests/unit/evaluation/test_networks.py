import pytest
import torch

from evaluation.networks import load_networks
from hub.weights import atomic_save
from tests.integration.tiny_world import GRID, build_world, tiny_tokenizer
from tokenizers.vq_model import fingerprint, save_tokenizer
from util.errors import UserError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("world"))


def test_sizes_follow_from_the_files(world):
    model, tokenizer = load_networks(world.checkpoint, world.tokenizer, GRID.image_size)
    assert model.grid == GRID and tokenizer.stride == GRID.stride
    assert not model.training and not tokenizer.training
    assert not any(weight.requires_grad for weight in [*model.parameters()])
    expected = torch.load(world.checkpoint, weights_only=True)["model"]
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_networks_that_do_not_fit_are_refused(world, tmp_path):
    content = torch.load(world.checkpoint, weights_only=True)
    own = fingerprint(tiny_tokenizer())
    cut = {**content["model"], "pos_embed": content["model"]["pos_embed"][:, 2:]}
    atomic_save({**content, "tokenizer_fingerprint": own}, tmp_path / "lpd.pth")
    atomic_save({"model": {}}, tmp_path / "empty.pth")
    atomic_save({"model": cut}, tmp_path / "cut.pth")
    save_tokenizer(tmp_path / "newer.pt", tiny_tokenizer(seed=3))
    load_networks(tmp_path / "lpd.pth", world.tokenizer)
    for checkpoint, tokenizer, size, message in (
        (world.checkpoint, world.tokenizer, 32, "found images of 16 pixels, expected 32"),
        ("lpd.pth", tmp_path / "newer.pt", None, f"trained on tokens of tokenizer {own[:12]}"),
        ("empty.pth", world.tokenizer, None, "--pretrained_ckpt: .*: found no weight pos_emb"),
        ("cut.pth", world.tokenizer, None, "--pretrained_ckpt: .*found 14 positions, expected"),
    ):
        with pytest.raises(UserError, match=message):
            load_networks(tmp_path / checkpoint, tokenizer, size)
