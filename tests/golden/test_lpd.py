"""The network and its decoding against numbers of the published release (float32, CPU)."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from models.decoding import SAMPLERS, generate
from models.fast import FastPath
from models.lpd import LPD, MODELS, lpd_l
from tests.forced import forced_logits
from tests.golden.weights import fill_golden_weights

DATA = Path(__file__).parent / "data"
TINY = ["lpd_tiny_8x8_steps6", "lpd_tiny_8x8_steps64"]


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def long(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))


@pytest.fixture(scope="module")
def tiny() -> LPD:
    model = LPD(128, 16, 96, 3, 4, class_num=10, vqgan_vocab_size=211)
    fill_golden_weights(model)
    return model.eval()


@pytest.fixture(scope="module")
def large() -> LPD:
    with torch.device("meta"):
        model = lpd_l()
    model = model.to_empty(device="cpu")
    fill_golden_weights(model)
    return model.eval()


def check_logits(model: LPD, golden: dict[str, np.ndarray], device: str = "cpu") -> None:
    """Of the forced pass, on a CPU, and of the fast path's decoding steps."""
    tokens, labels, orders = (long(golden[k]) for k in ("tokens", "labels", "orders"))
    given = tokens, labels, golden["group_sizes"].tolist(), orders
    with torch.no_grad():
        logits, loss = model.to("cpu").forward_logits(*given), model(*given)
    assert (logits.logsumexp(-1) - torch.from_numpy(golden["train_logits_lse"])).abs().max() < 1e-5
    assert abs(loss.item() - float(golden["train_loss"])) < 1e-5
    network = FastPath.of(model).network(model.to(device))
    on_device = (x.to(device) if isinstance(x, torch.Tensor) else x for x in given)
    for found in (logits, forced_logits(network, *on_device).cpu()):
        stored = torch.from_numpy(golden["train_logits"])
        assert (found[..., : stored.shape[-1]] - stored).abs().max() < 1e-5
        assert torch.equal(found.argmax(-1), long(golden["train_logits_argmax"]))


def check_greedy(model: LPD, golden: dict[str, np.ndarray], key: str, sampler: str) -> None:
    if key.endswith("unconditional"):
        labels, options = None, {}
    else:
        cfg, schedule = re.fullmatch(r"greedy_tokens_cfg([\d.]+)_(\w+)", key).groups()
        labels, options = long(golden["labels"]), {"cfg": float(cfg), "cfg_schedule": schedule}
    sizes = golden["group_sizes"].tolist()
    options |= {"top_k": 1, "sampler": sampler}
    tokens = generate(model, labels, golden["orders"], sizes, **options)
    assert torch.equal(tokens.cpu(), long(golden[key]))


def greedy_cases(names: list[str]) -> list[tuple[str, str]]:
    return [(name, key) for name in names for key in read(name) if key.startswith("greedy")]


@pytest.mark.parametrize("name", TINY)
def test_tiny_logits(tiny: LPD, name: str, device: str) -> None:
    check_logits(tiny, read(name), device)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("name", "key"), greedy_cases(TINY))
def test_tiny_greedy_tokens(tiny: LPD, name: str, key: str, sampler: str, device: str) -> None:
    check_greedy(tiny.to(device), read(name), key, sampler)


@pytest.mark.slow
def test_large_logits(large: LPD) -> None:
    check_logits(large, read("lpd_l_256_steps20"))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("name", "key"), greedy_cases(["lpd_l_256_steps20"]))
def test_large_greedy_tokens(large: LPD, name: str, key: str, sampler: str) -> None:
    check_greedy(large, read(name), key, sampler)


def test_state_dicts_are_the_published_ones(tiny: LPD) -> None:
    with torch.device("meta"):
        large = lpd_l()
    for model, name in ((large, "lpd_l_256"), (tiny, "lpd_tiny")):
        published = json.loads((DATA / f"{name}_state_dict.json").read_text())
        assert {key: list(value.shape) for key, value in model.state_dict().items()} == published
    tiny.load_state_dict({key: torch.ones(shape) for key, shape in published.items()}, strict=True)
    fill_golden_weights(tiny)


@pytest.mark.parametrize(
    ("factory", "options", "millions"),
    [
        ("lpd_tiny", dict(img_size=32, vqgan_stride=4, vqgan_vocab_size=256, class_num=10), 2.78),
        ("lpd_l", {}, 337.157),
        ("lpd_xl", {}, 751.948),
        ("lpd_xxl", {}, 1412.185),
    ],
)
def test_parameter_counts(factory: str, options: dict, millions: float) -> None:
    with torch.device("meta"):
        model = MODELS[factory](**options)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.005 if factory == "lpd_tiny" else 0.0005)
