"""Checkpoints become folders for `from_pretrained`, and come back the same bit by bit."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from hub.published import resolve_flags
from hub.weights import atomic_save, read_checkpoint
from models.lpd import LPD, lpd_tiny
from scripts.convert_checkpoint import main
from tests.commands import opens_anywhere
from tests.integration.tiny_world import tiny_tokenizer
from tokenizers.vq_model import VQModel, fingerprint, load_tokenizer, save_tokenizer
from training.checkpoint import load_pretrained
from util.errors import UserError

FLAGS = {"img_size": 16, "vqgan_stride": 4, "vqgan_vocab_size": 32, "class_num": 3}
FLAGS |= {"blind_queries": True}


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """A training checkpoint with tensors of several types."""
    torch.manual_seed(0)
    state = lpd_tiny(**FLAGS).state_dict()
    state["head.weight"] = state["head.weight"].bfloat16()
    state["norm.bias"] = torch.tensor(-0.0).repeat(192)  # equal to zeros, but not the same bits
    content = {"model": state, "optimizer": {"state": {}}, "epoch": 3, "args": FLAGS}
    atomic_save({**content, "tokenizer_fingerprint": "abc"}, tmp_path / "last.pth")
    return tmp_path / "last.pth"


def bits(state: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, bytes]]:
    tensors = {name: x.contiguous().flatten() for name, x in state.items()}
    return {name: (x.dtype, x.view(torch.uint8).numpy().tobytes()) for name, x in tensors.items()}


def test_there_and_back_again(tmp_path: Path, caplog, last: Path) -> None:
    caplog.set_level("INFO")
    folder, back, state = tmp_path / "folder", tmp_path / "back.pth", read_checkpoint(last, "")
    main([str(last), str(folder)])
    assert "not carried: optimizer, epoch, args" in caplog.text
    config = json.loads((folder / "config.json").read_text())
    assert config["img_size"] == 16 and config["vqgan_stride"] == 4
    model = LPD.from_pretrained(folder)
    assert model.tokenizer_fingerprint == "abc"
    assert torch.equal(model.head.weight, state["model"]["head.weight"].float())

    main([str(folder), str(back)])
    content = read_checkpoint(back, "")
    assert bits(content["model"]) == bits(state["model"])
    assert content["tokenizer_fingerprint"] == "abc"
    assert content["args"].items() >= FLAGS.items()  # where the release looks
    assert opens_anywhere(back)
    main([str(back), str(tmp_path / "folder2")])
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "folder2" / name).read_bytes() == (folder / name).read_bytes()

    # The flags for weights take folders.
    args = Namespace(pretrained_ckpt=str(folder))
    resolve_flags(args)
    assert args.pretrained_ckpt == str(folder / "model.safetensors")
    before, after = lpd_tiny(**FLAGS), lpd_tiny(**FLAGS)
    load_pretrained(before, last)
    for path in (back, args.pretrained_ckpt):
        load_pretrained(after, path)
        assert bits(before.state_dict()) == bits(after.state_dict())
    with pytest.raises(UserError, match=r"^--pretrained_ckpt: .*: was trained on tokens"):
        load_pretrained(after, args.pretrained_ckpt, tokenizer_fingerprint="xyz")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^--pretrained_ckpt: .*folder: found README.md, "):
        resolve_flags(Namespace(pretrained_ckpt=str(folder)))


def test_a_tokenizer(tmp_path: Path) -> None:
    vq, folder, back = (tmp_path / name for name in ("vq.pt", "folder", "back.pt"))
    save_tokenizer(vq, tiny_tokenizer())
    main([str(vq), str(folder)])
    main([str(folder), str(back)])
    assert opens_anywhere(back)
    models = [load_tokenizer(path) for path in (vq, folder / "model.safetensors", back)]
    for model in (*models, VQModel.from_pretrained(folder)):
        assert fingerprint(model) == fingerprint(tiny_tokenizer())


def test_nothing_is_left_where_the_disk_refuses(tmp_path: Path, monkeypatch, last: Path) -> None:
    def refuse(path: Path, data: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match="^OUT: .*No space left on device"):
        main([str(last), str(tmp_path / "folder")])
    assert not list((tmp_path / "folder").iterdir())
