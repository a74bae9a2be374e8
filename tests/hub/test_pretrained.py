"""`from_pretrained`, `save_pretrained` and `push_to_hub` of LPD and the tokenizer."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, PyTorchModelHubMixin
from safetensors import safe_open

from hub.weights import Weights
from models.decoding import generate
from models.lpd import LPD, MODELS, lpd_tiny
from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders
from tests.hub.worlds import publish, published_lpd, published_tokenizer, saved
from tokenizers.vq_model import VQModel
from util.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "data"


def small(**options: object) -> LPD:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "vqgan_stride": 4, "vqgan_vocab_size": 32, "class_num": 3}
    return lpd_tiny(**{**sizes, **options}).eval()


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(map(torch.equal, ours.values(), theirs.values()))


@pytest.mark.parametrize("make", [small, published_tokenizer])
def test_what_was_saved_comes_back(make, tmp_path):
    model, file = make(), tmp_path / "model.safetensors"
    assert isinstance(model, PyTorchModelHubMixin)
    model._hub_mixin_config["tokenizer_fingerprint"] = "abc"
    model.save_pretrained(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["README.md", "config.json", file.name]
    assert file.stat().st_mode & 0o044 == 0o044
    with safe_open(file, framework="pt") as content:
        assert content.metadata() == {"format": "pt"}
    again = type(model).from_pretrained(tmp_path)
    assert same(model, again) and not again.training
    assert json.dumps(again._hub_mixin_config) == json.dumps(model._hub_mixin_config)


def test_the_card_holds_what_was_measured_and_nothing_else():
    model = small()
    text = str(model.generate_model_card())
    assert "None were measured for this card." in text
    assert f"{sum(value.numel() for value in model.parameters()):,} parameters" in text
    assert "| decoder_depth | 6 |" in text
    text = str(model.generate_model_card(results={"FID-5K": 3.25, "odd|name": [1, 2]}))
    assert "| FID-5K | 3.25 |" in text and r"| odd\|name | [1, 2] |" in text
    assert "None were measured" not in text


def test_published_repositories_that_hold_a_pth_only_and_a_newer_commit(hub, inside):
    publish(hub)
    model, tokenizer = LPD.from_pretrained("lpd_l_256"), VQModel.from_pretrained("llamagen")
    assert same(model, published_lpd())
    assert same(tokenizer, published_tokenizer())
    assert (model.grid.image_size, model.grid.stride, model.class_num) == (256, 16, 1000)
    assert same(LPD.from_pretrained("mit-han-lab/lpd_l_256"), model)
    assert same(VQModel.from_pretrained("FoundationVision/LlamaGen"), tokenizer)
    assert same(LPD.from_pretrained("lpd_l_256", local_files_only=True), model)
    commit = hub.head("mit-han-lab/lpd_l_256")
    newer = {"lpd_l_256.pth": saved({"model": small().state_dict()})}
    hub.repositories["mit-han-lab/lpd_l_256"].commit(newer)
    assert LPD.from_pretrained("lpd_l_256").class_num == 1000
    assert LPD.from_pretrained("lpd_l_256", force_download=True).class_num == 3
    for name, revision in ((f"lpd_l_256@{commit}", None), ("lpd_l_256", commit)):
        assert same(LPD.from_pretrained(name, revision=revision), model)


@pytest.mark.parametrize("name", ["lpd_l", "lpd_xl", "lpd_xxl"])
@pytest.mark.parametrize("img_size", [256, 512])
def test_the_size_follows_from_the_shapes(name, img_size):
    with torch.device("meta"):
        model = MODELS[name](img_size=img_size)
    state = model.state_dict()
    if (name, img_size) == ("lpd_l", 256):
        shapes = json.loads((GOLDEN / "lpd_l_256_state_dict.json").read_text())
        assert shapes == {name: list(value.shape) for name, value in state.items()}
    config = LPD.config_of(Weights(state, None, {}, None, ()), {})
    assert model._hub_mixin_config.items() >= config.items()
    assert config["mlp_ratio"] == 4.0


@pytest.mark.parametrize("form", [dict, Namespace])
def test_a_training_checkpoint_says_what_shapes_do_not_and_arguments_go_before(tmp_path, form):
    model = small()
    flags = form(img_size=16, proj_dropout=0.25, label_drop_prob=0.2, blind_queries=True)
    content = {"model": model.state_dict(), "args": flags, "epoch": 3, "optimizer": {}}
    (tmp_path / "last.pth").write_bytes(saved({**content, "tokenizer_fingerprint": "abc"}))
    again = LPD.from_pretrained(tmp_path / "last.pth", label_drop_prob=0.5)
    assert (again.grid.image_size, again.grid.stride) == (16, 4)
    assert again._hub_mixin_config["proj_dropout"] == 0.25
    assert again.blind_queries is True and again.label_drop_prob == 0.5
    assert again.tokenizer_fingerprint == "abc"


def test_a_size_of_nobody_needs_its_heads(tmp_path):
    model = LPD(128, 16, 96, 3, 4, class_num=10, vqgan_vocab_size=211).eval()
    (tmp_path / "odd.pth").write_bytes(saved({"model": model.state_dict()}))
    line = r"odd\.pth: found width 96 and depth 3, .* decoder_num_heads"
    with pytest.raises(UserError, match=line):
        LPD.from_pretrained(tmp_path / "odd.pth")
    again = LPD.from_pretrained(tmp_path / "odd.pth", decoder_num_heads=4)
    assert same(again, model)
    assert again._hub_mixin_config["decoder_num_heads"] == 4


def test_what_is_pushed_comes_back(hub, inside, monkeypatch):
    def upload_folder(api: HfApi, repo_id: str, folder_path: Path, **options: object) -> None:
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        hub.add(repo_id, **files)

    monkeypatch.setattr(HfApi, "create_repo", lambda api, repo_id, **_: Namespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    model = small()
    model.push_to_hub("user/mine", model_card_kwargs={"results": {"FID-9": 1.5}})
    files = hub.repositories["user/mine"].commits[hub.head("user/mine")]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert b"| FID-9 | 1.5 |" in files["README.md"]
    assert same(LPD.from_pretrained("user/mine"), model)


@pytest.mark.parametrize("name", ["./nowhere/at/all", "llamagen"])
def test_there_is_nothing(name):
    line = f"^from_pretrained: found '{name}', expected a folder, a checkpoint, a repository user/n"
    with pytest.raises(UserError, match=line):
        LPD.from_pretrained(name)


def test_what_does_not_fit(tmp_path, caplog):
    for times in (0, 1):  # an old card stays, with its results
        small().save_pretrained(tmp_path)
        assert caplog.text.count("README.md is kept as it is") == times
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
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="^from_pretrained: .* cannot be read"):
        LPD.from_pretrained(tmp_path)


def test_orders_and_sizes_made_on_the_spot():
    model, sizes, ids = small(), group_sizes(16, 5), [4, 9]
    orders = locality_aware_orders(2, sizes, grid_size=4, seed=7, image_ids=ids)
    expected = generate(model, [0, 2], orders, sizes, seed=7, image_ids=ids)
    found = generate(model, [0, 2], orders=None, group_sizes=5, seed=7, image_ids=ids)
    assert torch.equal(found, expected)
