"""Generated images held against real ones: the studies' measure, with tiny networks."""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dataset.image_folder import ImageBatch
from hub.weights import atomic_save
from models.decoding import generate
from models.lpd import LPD, lpd_tiny
from orders.group_sizes import group_sizes
from orders.sources import parse_order
from scripts.evidence import data_sets, photographs, samples
from scripts.evidence.data_sets import DataSet, judge_features, texture_features
from studies.likelihood import Setting
from tests.integration.tiny_world import CLASSES, GRID, tiny_tokenizer
from tokenizers.vq_model import save_tokenizer
from util.errors import UserError

SIZES = [1, 3, 5, 7]
LABELS = torch.arange(9) // 3
SEED = 5


def opinionated_model() -> LPD:
    """Random, but what it draws depends on class, context and chance alike."""
    torch.manual_seed(1)
    model = lpd_tiny(img_size=16, vqgan_stride=4, vqgan_vocab_size=32, class_num=CLASSES)
    with torch.no_grad():
        for layer, factor in ((model.class_emb, 20), (model.token_emb, 20), (model.head, 5)):
            layer.weight.mul_(factor)
    return model.eval().requires_grad_(False)


def test_every_sample_has_its_own_class_order_and_draws(monkeypatch) -> None:
    model, lpd = opinionated_model(), parse_order("lpd", GRID, SEED, 9)

    def one_by_one(labels: Tensor, orders: np.ndarray) -> Tensor:
        options, ids = dict(group_sizes=SIZES, seed=SEED), [[i] for i in range(9)]
        made = (generate(model, labels[i], orders[i], image_ids=i, **options) for i in ids)
        return torch.cat([*made])

    monkeypatch.setattr(samples, "BATCH_SIZE", 4)
    made = samples.sample(model, LABELS, Setting("lpd", lpd, SIZES), 1.0, SEED)
    orders = lpd(np.arange(9), SIZES)
    assert torch.equal(made, one_by_one(LABELS, orders))
    # Each of them would be another with another class, or the order of another image.
    for other in (LABELS.roll(3), orders), (LABELS, np.roll(orders, 1, axis=0)):
        assert (made != one_by_one(*other)).any(1).all()


def grey(values: Sequence[int]) -> Tensor:
    """(n, 3, 16, 16) uint8, each with dots so that features vary."""
    images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 16, 16)
    for i, image in enumerate(images):
        image[:, i % 16, :] += 1 + i
    return images


class Judge:
    """Calls black 0, grey 1 and white 2."""

    def score(self, images: Tensor, labels: Tensor) -> float:
        return float((images.float().mean(dim=(1, 2, 3)) // 86 == labels).float().mean())


def toy(args: argparse.Namespace | None = None) -> DataSet:
    """Three classes; the judge errs twice among held-out images."""
    train = ImageBatch(grey([10, 20, 30, 40] * 3), torch.arange(12) // 4)
    held_out = ImageBatch(grey([5, 99, 100, 101, 200, 99]), torch.arange(6) // 2)
    compared = {"to_held_out": held_out, "to_train": train}
    return DataSet(train, held_out, Judge(), lambda images: images.float()[:, 0, :2, 0], compared)


def test_accuracy_distances_and_choice_are_what_they_say() -> None:
    data = toy()
    parts = data.held_out.images, data.train.images
    first, second = (data.measure(data.held_out, images) for images in parts)
    assert first["class_accuracy"] == pytest.approx(4 / 6)
    assert first["to_held_out"] == pytest.approx(0, abs=1e-3) and first["to_train"] > 99
    assert second["to_train"] == pytest.approx(0, abs=1e-3)
    assert second["to_held_out"] == pytest.approx(first["to_train"])
    # Images are spread over what there is.
    images = ImageBatch(torch.arange(10).view(10, 1, 1, 1), torch.tensor([0] * 6 + [1] * 4))
    two = samples.spread(images, 2)
    assert two.images.flatten().tolist() == [0, 3, 6, 8] and two.labels.tolist() == [0, 0, 1, 1]
    assert samples.spread(images, 5).images.flatten().tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_the_command_measures_every_setting(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(samples, "DATA_SETS", {"toy": toy})
    checkpoint, vq, grid = (tmp_path / name for name in ("lpd.pth", "vq.pt", "grid.png"))
    save_tokenizer(vq, tiny_tokenizer())
    atomic_save({"model": opinionated_model().state_dict()}, checkpoint)
    line = f"toy --pretrained_ckpt {checkpoint} --vqgan_path {vq} --data unread --seed {SEED}"
    line += f" --steps 16 4 --orders lpd raster --output {tmp_path}/new/out.json"
    line += f" --grid {grid} --grid_steps 4 --samples"
    with pytest.raises(UserError, match="^--samples: found 10, expected a multiple of 3$"):
        samples.main([*line.split(), "10"])
    samples.main([*line.split(), "9"])
    found = json.loads((tmp_path / "new" / "out.json").read_text())
    assert (found["data_set"], found["samples"], found["cfg"], found["seed"]) == ("toy", 9, 1.0, 5)
    for name, path in {"checkpoint": checkpoint, "tokenizer": vq}.items():
        assert found[f"{name}_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    settings = [(entry["steps"], entry["order"]) for entry in found["results"]]
    assert settings == [(16, "lpd"), (16, "raster"), (4, "lpd"), (4, "raster")]
    # The same by hand: nine samples of the third setting, three of each class.
    data, codec = toy(), samples.Codec(tiny_tokenizer(), GRID)
    model = opinionated_model().round_products()
    setting = Setting("lpd", parse_order("lpd", GRID, SEED, 9), group_sizes(16, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = samples.sample(model, LABELS, setting, 1.0, SEED)
    made = ImageBatch(codec.decode(tokens), LABELS)
    assert found["results"][2] == {"order": "lpd", "steps": 4, **data.measure(made, made.images)}
    # Real images: those held out for the judge, as many of those trained on for the distances.
    train = samples.spread(data.train, 3).images
    assert found["real"] == pytest.approx(data.measure(data.held_out, train))
    again = [codec.decode(codec.encode(images)) for images in (data.held_out.images, train)]
    expected = data.measure(ImageBatch(again[0], data.held_out.labels), again[1])
    assert found["reconstructed"] == expected != found["real"]
    # Real and reconstructed images, then two orders; three of each class.
    picture = np.asarray(Image.open(grid))
    assert picture.shape == (4 * 18 - 2, 9 * 18 - 2, 3)
    assert np.array_equal(picture[:16, :16], train[0].permute(1, 2, 0).numpy())
    assert np.array_equal(picture[36:52, 18:34], made.images[1].permute(1, 2, 0).numpy())


def test_photographs_are_told_apart_where_nobody_was_trained(tmp_path: Path) -> None:
    photographs.main(["--output", str(tmp_path), "--spacing", "40"])  # fewer crops
    data = data_sets.photographs(argparse.Namespace(data=tmp_path))
    train = data.train.images
    assert len(train) == 2 * 2 * 10 * 10 and len(data.held_out.images) == 2 * 2 * 10 * 4
    assert torch.equal(train[3].flip(2), train[200 + 3])
    assert data.judge.score(*data.held_out) > 0.85
    # In standard deviations of the training crops.
    assert torch.allclose(data.features(train).std(dim=0), torch.ones(60), atol=1e-4)
    distances = data.measure(data.held_out, train)  # to the training crops, and to the others
    assert distances["frechet_distance"] == pytest.approx(0, abs=1e-2)
    assert distances["frechet_distance_held_out"] > 1


def test_features_of_crops_are_finite_and_know_directions() -> None:
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes.unflatten(3, (8, 8))[..., :4] = 200  # upright, one token wide
    for transform in (judge_features, texture_features):
        flat = transform(torch.full((2, 3, 64, 64), 7, dtype=torch.uint8))
        assert flat.dtype == torch.float32 and flat.isfinite().all()
    lines = judge_features(stripes).view(1, 11, 4, 4)
    assert lines[0, [0, 4]].min() > 0.4 and lines[0, [1, 2, 3, 5, 6, 7]].abs().max() == 0
    assert lines[0, 8:].mean() == pytest.approx(100 / 255, abs=1e-6)
    # Mean and root mean square of lightness by token: side by side, then one below the other.
    strongest = texture_features(stripes)[0, [12, 15, 18, 21]].exp()
    assert strongest.tolist() == pytest.approx([200 / 255] * 2 + [1 / 255] * 2, rel=0.02)
