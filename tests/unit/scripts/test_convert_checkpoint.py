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
from tokenizers.vq_model import VQModel, fingerprint, load_tokenizer
from training.checkpoint import load_pretrained
from util.errors import UserError

SIZES = {"img_size": 16, "vqgan_stride": 4, "vqgan_vocab_size": 32, "class_num": 3}


def training_checkpoint(path: Path, form: type = dict) -> dict[str, torch.Tensor]:
    """Write one, of tensors of several types, its flags in some form; returns its weights."""
    torch.manual_seed(0)
    state = lpd_tiny(**SIZES).state_dict()
    state["head.weight"] = state["head.weight"].bfloat16()
    state["norm.bias"] = torch.tensor(-0.0).repeat(192)  # equal to zeros, but not the same bits
    content = {"model": state, "optimizer": {"state": {}}, "epoch": 3}
    content["args"] = form(**SIZES, lr=1e-3, blind_queries=False)
    atomic_save({**content, "tokenizer_fingerprint": "abc"}, path)
    return state


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    def bits(state: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, bytes]]:
        tensors = {name: x.contiguous().flatten() for name, x in state.items()}
        return {n: (x.dtype, x.view(torch.uint8).numpy().tobytes()) for n, x in tensors.items()}

    return bits(first) == bits(second)


@pytest.mark.parametrize("form", [dict, Namespace])
def test_there_and_back_again(tmp_path: Path, capsys: pytest.CaptureFixture, form: type) -> None:
    last, folder, back = tmp_path / "last.pth", tmp_path / "folder", tmp_path / "back.pth"
    state = training_checkpoint(last, form)
    main([str(last), str(folder)])
    assert "not carried: optimizer, epoch, args" in capsys.readouterr().err
    config = json.loads((folder / "config.json").read_text())
    assert config["img_size"] == 16 and config["vqgan_stride"] == 4
    model = LPD.from_pretrained(folder)
    assert model.tokenizer_fingerprint == "abc"
    assert torch.equal(model.head.weight, state["head.weight"].float())

    main([str(folder), str(back)])
    content = read_checkpoint(back, "")
    assert same_bits(content["model"], state)
    assert content["tokenizer_fingerprint"] == "abc"
    assert opens_anywhere(back)
    main([str(back), str(tmp_path / "folder2")])
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "folder2" / name).read_bytes() == (folder / name).read_bytes()

    # The flags for weights take folders.
    args = Namespace(pretrained_ckpt=str(folder))
    resolve_flags(args)
    assert args.pretrained_ckpt == str(folder / "model.safetensors")
    before, after = lpd_tiny(**SIZES), lpd_tiny(**SIZES)
    load_pretrained(before, last)
    for path in (back, args.pretrained_ckpt):
        load_pretrained(after, path)
        assert same_bits(before.state_dict(), after.state_dict())
    with pytest.raises(UserError, match=r"^--pretrained_ckpt: .*: was trained on tokens"):
        load_pretrained(after, args.pretrained_ckpt, tokenizer_fingerprint="xyz")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^--pretrained_ckpt: .*folder: found README.md, "):
        resolve_flags(Namespace(pretrained_ckpt=str(folder)))


def test_a_tokenizer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VQModel(16, 4, 32, (1, 1), (1, 1), num_res_blocks=1, z_channels=32)
    atomic_save({"model": model.state_dict(), "config": model.config}, tmp_path / "vq.pt")
    main([str(tmp_path / "vq.pt"), str(tmp_path / "folder")])
    main([str(tmp_path / "folder"), str(tmp_path / "back.pt")])
    assert opens_anywhere(tmp_path / "back.pt")
    assert same_bits(read_checkpoint(tmp_path / "back.pt", "")["model"], model.state_dict())
    safetensors = tmp_path / "folder" / "model.safetensors"
    read = [load_tokenizer(tmp_path / "back.pt"), load_tokenizer(safetensors)]
    read.append(VQModel.from_pretrained(tmp_path / "folder"))
    assert set(map(fingerprint, read)) == {fingerprint(model)}


def test_nothing_is_left_where_the_disk_refuses(tmp_path: Path, monkeypatch) -> None:
    training_checkpoint(tmp_path / "last.pth")

    def refuse(path: Path, data: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match="^OUT: .*No space left on device"):
        main([str(tmp_path / "last.pth"), str(tmp_path / "folder")])
    assert not list((tmp_path / "folder").iterdir())
