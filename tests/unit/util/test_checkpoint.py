import argparse
from pathlib import Path

import pytest
import torch

from models.lpd import lpd_tiny
from util.checkpoint import TrainingState, load_pretrained, resize_pos_embed
from util.checkpoint_io import atomic_save
from util.errors import UserError


def tiny(**options: int):
    defaults = dict(img_size=16, vqgan_stride=4, vqgan_vocab_size=32, class_num=3)
    return lpd_tiny(**{**defaults, **options})


def test_training_state_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-last.pth"
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.zeros(1, 16, dtype=torch.int64), torch.tensor([0]), [16]).backward()
    optimizer.step()
    atomic_save(
        TrainingState(model, optimizer, argparse.Namespace(lr=1e-3), epoch=7).content(), path
    )
    other = tiny()
    state = TrainingState(other, torch.optim.AdamW(other.parameters()), argparse.Namespace())
    state.restore(path)
    assert state.epoch == 7
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    moments = [s["exp_avg"] for s in optimizer.state_dict()["state"].values()]
    restored = [s["exp_avg"] for s in state.optimizer.state_dict()["state"].values()]
    assert all(torch.equal(*pair) for pair in zip(moments, restored, strict=True))


def test_tokenizer_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-last.pth"
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    atomic_save(TrainingState(model, optimizer, argparse.Namespace(), 0, "a" * 64).content(), path)
    with pytest.raises(UserError, match="tokenizer aaaaaaaaaaaa, expected this run's bbbbbbbbbbbb"):
        TrainingState(model, optimizer, argparse.Namespace(), 0, "b" * 64).restore(path)
    TrainingState(model, optimizer, argparse.Namespace(), 0, None).restore(path)


def test_weights_alone_cannot_be_resumed(tmp_path: Path) -> None:
    model = tiny()
    atomic_save({"model": model.state_dict()}, tmp_path / "x.pth")
    state = TrainingState(model, torch.optim.AdamW(model.parameters()), argparse.Namespace())
    with pytest.raises(UserError, match="holds no 'optimizer' entry"):
        state.restore(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": {}}, "holds no 'model' entry"),
        ({"model": [1, 2]}, "weights are a list, expected a dictionary"),
        ({"model": {}}, "weight fake_latent is missing"),
    ],
)
def test_wrong_content_is_named(tmp_path: Path, content: dict, message: str) -> None:
    atomic_save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"^--pretrained_ckpt: .*x.pth: {message}"):
        load_pretrained(tiny(), tmp_path / "x.pth")


def test_another_model_size_is_refused_with_and_without_resize(tmp_path: Path) -> None:
    atomic_save({"model": tiny(class_num=4).state_dict()}, tmp_path / "x.pth")
    for resize in (False, True):
        with pytest.raises(UserError, match=r"class_emb.weight has shape \(4, 192\)"):
            load_pretrained(tiny(), tmp_path / "x.pth", resize=resize)


def test_another_grid_needs_resize(tmp_path: Path) -> None:
    small, large = tiny(), tiny(img_size=32)
    atomic_save({"model": small.state_dict()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"pos_embed has shape \(1, 17, 192\), expected \(1, 65"):
        load_pretrained(large, tmp_path / "x.pth")
    load_pretrained(large, tmp_path / "x.pth", resize=True)
    assert torch.equal(large.pos_embed, resize_pos_embed(small.pos_embed, 64))
    assert torch.equal(large.head.weight, small.head.weight)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-last.pth"
    atomic_save({"epoch": 1}, path)
    with pytest.raises(AttributeError):
        atomic_save({"epoch": lambda: None}, path)  # cannot be pickled
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-last.pth"]
