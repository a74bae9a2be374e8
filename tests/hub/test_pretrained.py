"""`from_pretrained`, `save_pretrained` and `push_to_hub` of LPD and the tokenizer."""

import json
import math
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.decoding import generate
from models.lpd import LPD, MODELS, config_from_shapes, lpd_tiny
from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders
from tests.hub.worlds import publish, published_lpd, published_tokenizer, saved
from tokenizers.vq_model import VQModel, load_tokenizer
from util.errors import UserError
from util.images import to_uint8

GOLDEN = Path(__file__).parents[1] / "golden" / "data"


def small(**options: object) -> LPD:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "vqgan_stride": 4, "vqgan_vocab_size": 32, "class_num": 3}
    return lpd_tiny(**{**sizes, **options}).eval()


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name])
        for name in ours
    )


@pytest.mark.parametrize("make", [small, published_tokenizer])
def test_what_was_saved_comes_back(make, tmp_path):
    model, file = make(), tmp_path / "model.safetensors"
    assert isinstance(model, PyTorchModelHubMixin)
    model.save_pretrained(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["README.md", "config.json", file.name]
    assert file.stat().st_mode & 0o044 == 0o044
    with safe_open(file, framework="pt") as content:
        assert content.metadata() == {"format": "pt"}
    again = type(model).from_pretrained(tmp_path)
    assert same(model, again)
    assert not again.training
    assert json.dumps(again._hub_mixin_config) == json.dumps(model._hub_mixin_config)


def test_what_else_is_saved(tmp_path):
    model = small(proj_dropout=0.3)
    model.mask_token.data = model.pos_embed.data[:, :1]  # tensors that share memory
    assert model.tokenizer_fingerprint is None
    content = {"model": model.state_dict(), "tokenizer_fingerprint": "abc"}
    (tmp_path / "lpd.pth").write_bytes(saved({**content, "args": {"proj_dropout": 0.3}}))
    LPD.from_pretrained(tmp_path / "lpd.pth").save_pretrained(tmp_path / "folder")
    again = LPD.from_pretrained(tmp_path / "folder", label_drop_prob=0.0)
    assert again.tokenizer_fingerprint == "abc" and same(again, model)
    assert (again.label_drop_prob, again._hub_mixin_config["proj_dropout"]) == (0.0, 0.3)
    model.save_pretrained(tmp_path / "shared")
    assert same(LPD.from_pretrained(tmp_path / "shared"), model)


def test_the_card_holds_what_was_measured_and_nothing_else(tmp_path, caplog):
    model, card = small(), tmp_path / "README.md"
    model.save_pretrained(tmp_path)
    text = card.read_text()
    assert "None were measured for this card." in text
    assert f"{sum(value.numel() for value in model.parameters()):,} parameters" in text
    assert "| decoder_depth | 6 |" in text
    card.unlink()
    results = {"FID-5K": 3.25, "cfg_schedule": "linear", "odd|name": [1, 2]}
    model.save_pretrained(tmp_path, model_card_kwargs={"results": results})
    text = card.read_text()
    for row in ("| FID-5K | 3.25 |", "| cfg_schedule | linear |", r"| odd\|name | [1, 2] |"):
        assert row in text
    assert "None were measured" not in text
    assert not caplog.text
    model.save_pretrained(tmp_path)
    assert card.read_text() == text
    assert "its results may be of other weights" in caplog.text


# What was published


def test_published_repositories_that_hold_a_pth_only(hub, inside):
    publish(hub)
    model, tokenizer = LPD.from_pretrained("lpd_l_256"), VQModel.from_pretrained("llamagen")
    assert same(model, published_lpd())
    assert same(tokenizer, published_tokenizer())
    assert (model.grid.image_size, model.grid.stride, model.class_num) == (256, 16, 1000)
    assert same(LPD.from_pretrained("mit-han-lab/lpd_l_256"), model)
    assert same(VQModel.from_pretrained("FoundationVision/LlamaGen"), tokenizer)
    hub.stop()
    assert same(LPD.from_pretrained("lpd_l_256", local_files_only=True), model)
    commit = hub.head("mit-han-lab/lpd_l_256")
    for name, revision in ((f"lpd_l_256@{commit}", None), ("lpd_l_256", commit)):
        assert same(LPD.from_pretrained(name, revision=revision), model)


def test_a_newer_commit_is_taken_on_request(hub, inside):
    publish(hub)
    LPD.from_pretrained("lpd_l_256")
    newer = {"lpd_l_256.pth": saved({"model": small().state_dict()})}
    hub.repositories["mit-han-lab/lpd_l_256"].commit(newer)
    assert LPD.from_pretrained("lpd_l_256").class_num == 1000
    assert LPD.from_pretrained("lpd_l_256", force_download=True).class_num == 3


@pytest.mark.parametrize("name", ["lpd_l", "lpd_xl", "lpd_xxl"])
@pytest.mark.parametrize("img_size", [256, 512])
def test_the_size_follows_from_the_shapes(name, img_size):
    with torch.device("meta"):
        model = MODELS[name](img_size=img_size)
    state = model.state_dict()
    if (name, img_size) == ("lpd_l", 256):
        shapes = json.loads((GOLDEN / "lpd_l_256_state_dict.json").read_text())
        assert shapes == {name: list(value.shape) for name, value in state.items()}
    config = config_from_shapes(state, {}, {})
    assert model._hub_mixin_config.items() >= config.items()
    assert config["mlp_ratio"] == 4.0


@pytest.mark.parametrize("form", [dict, Namespace])
def test_a_training_checkpoint_says_what_shapes_do_not(tmp_path, form):
    model = small()
    flags = form(img_size=16, proj_dropout=0.25, lr=1e-4, blind_queries=True)
    content = {"model": model.state_dict(), "args": flags, "epoch": 3, "optimizer": {}}
    (tmp_path / "last.pth").write_bytes(saved({**content, "tokenizer_fingerprint": "abc"}))
    again = LPD.from_pretrained(tmp_path / "last.pth")
    assert (again.grid.image_size, again.grid.stride) == (16, 4)
    assert again._hub_mixin_config["proj_dropout"] == 0.25
    assert again.blind_queries is True
    assert again.tokenizer_fingerprint == "abc"


def test_a_size_of_nobody_needs_its_heads(tmp_path):
    torch.manual_seed(0)
    model = LPD(128, 16, 96, 3, 4, class_num=10, vqgan_vocab_size=211).eval()
    (tmp_path / "odd.pth").write_bytes(saved({"model": model.state_dict()}))
    with pytest.raises(
        UserError, match=r"odd\.pth: found width 96 and depth 3, .* decoder_num_heads"
    ):
        LPD.from_pretrained(tmp_path / "odd.pth")
    again = LPD.from_pretrained(tmp_path / "odd.pth", decoder_num_heads=4)
    tokens, labels = torch.randint(211, (2, 64)), torch.tensor([1, 2])
    orders, sizes = torch.stack([torch.randperm(64)] * 2), group_sizes(64, 6)
    with torch.no_grad():
        ours, theirs = (net.forward_logits(tokens, labels, sizes, orders) for net in (model, again))
    assert torch.equal(ours, theirs)


# Pushed, and what goes wrong


def test_what_is_pushed_comes_back(hub, inside):
    hub.tokens.add("hf_user")
    model = small()
    url = model.push_to_hub(
        "user/mine", token="hf_user", model_card_kwargs={"results": {"FID-9": 1.5}}
    )
    commit = hub.head("user/mine")
    assert str(url) == f"{hub.url}/user/mine/commit/{commit}"
    files = hub.repositories["user/mine"].commits[commit]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert b"| FID-9 | 1.5 |" in files["README.md"]
    assert same(LPD.from_pretrained("user/mine"), model)
    # The library by itself reads it from this Hub too, in a cache of its own.
    for name, content in files.items():
        path = hf_hub_download("user/mine", name, cache_dir=inside.home / "other")
        assert Path(path).read_bytes() == content
    hub.faults.changed = True
    with pytest.raises(UserError, match="^from_pretrained: .* arrived with hash"):
        LPD.from_pretrained("user/mine", cache_dir=inside.home / "third")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("./nowhere/at/all", "found './nowhere/at/all', expected a folder, a checkpoint, a repos"),
        ("llamagen", "found 'llamagen', expected a folder, a checkpoint, a repository user/name"),
        ("user/none", "user/none at http.* is private or does not exist"),
        ("empty", "empty: found no files, expected config.json and model.safetensors, or one .pth"),
    ],
)
def test_there_is_nothing(hub, inside, tmp_path, monkeypatch, name, line):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(UserError, match=f"^from_pretrained: {line}"):
        LPD.from_pretrained(name)


def test_weights_are_loaded_strictly(tmp_path):
    small().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    for changed, line in (
        ({**state, "extra": torch.zeros(2)}, "weight extra of shape .* is unexpected"),
        ({**state, "norm.bias": state["norm.bias"] * math.nan}, "weight norm.bias holds NaN"),
    ):
        save_file(changed, file)
        with pytest.raises(UserError, match=f"^from_pretrained: .*safetensors: {line}"):
            LPD.from_pretrained(tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="^from_pretrained: .* cannot be read"):
        LPD.from_pretrained(tmp_path)


def test_configurations_that_do_not_fit(tmp_path):
    small().save_pretrained(tmp_path)
    for config, line in (
        ("[1]", "holds list, expected names and values"),
        ("{", "is no readable JSON"),
        ('{"decoder_depth": "six"}', "found configuration .* expected LPD's arguments"),
        ('{"decoder_num_heads": 0}', "found configuration|heads"),
        ("{}", "weight .* has shape"),
    ):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(UserError, match=f"^from_pretrained: .*({line})"):
            LPD.from_pretrained(tmp_path)


# The rest of the six lines


def test_orders_and_sizes_made_on_the_spot():
    model = small()
    sizes = group_sizes(16, 5)
    ids = [4, 9]
    orders = locality_aware_orders(2, sizes, grid_size=4, seed=7, image_ids=ids)
    expected = generate(model, torch.tensor([0, 2]), orders, sizes, seed=7, image_ids=ids)
    found = generate(model, [0, 2], orders=None, group_sizes=5, seed=7, image_ids=ids)
    assert torch.equal(found, expected)
    assert generate(model, [1], None, 5).shape == (1, 16)
    with pytest.raises(ValueError, match="orders: found none, and no labels or image_ids"):
        generate(model, None, None, 5)


def test_images_to_look_at(tmp_path):
    published_tokenizer().save_pretrained(tmp_path)
    model = VQModel.from_pretrained(tmp_path)
    codes = torch.randint(32, (2, 16))
    images = model.decode_images(codes)
    assert all(isinstance(image, Image.Image) for image in images)
    pixels = to_uint8(model.decode_code(codes)).numpy()
    assert [image.tobytes() for image in images] == [one.tobytes() for one in pixels]
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "vq.pt").write_bytes(saved({"model": state}))
    with pytest.raises(UserError, match="^--vqgan_path"):  # not of the published layout
        load_tokenizer(tmp_path / "vq.pt")
