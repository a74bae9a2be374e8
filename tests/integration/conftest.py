import numpy as np
import pytest
import torch

from evaluation import samples
from hub.weights import atomic_save
from models.decoding import generate
from models.lpd import lpd_tiny
from tests.integration.tiny_world import CLASSES, GRID, TinyWorld, build_world
from tests.unit.evaluation.scoring_files import write_digits


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """Files that no test changes."""
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a scored evaluation of a random 32 px network, the size the classifier takes."""
    folder = tmp_path_factory.mktemp("scored")
    torch.manual_seed(4)
    model = lpd_tiny(32, vqgan_stride=4, vqgan_vocab_size=GRID.vocab_size, class_num=CLASSES)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    atomic_save({"model": model.state_dict()}, folder / "lpd.pth")
    return [
        *("--img_size", "32", "--pretrained_ckpt", str(folder / "lpd.pth")),
        *("--generation_steps", "6", "--num_images", "30", "--feature_extractor", "digits"),
        *("--feature_extractor_weights", str(write_digits(folder / "classifier.pth"))),
    ]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids of the images that are generated."""
    ids: list[int] = []

    def count(*arguments: object, image_ids: np.ndarray, **options: object) -> torch.Tensor:
        ids.extend(image_ids.tolist())
        return generate(*arguments, image_ids=image_ids, **options)

    monkeypatch.setattr(samples, "generate", count)
    return ids
