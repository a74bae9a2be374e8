"""What benchmarks share."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from performance import timing as benchmark
from performance.cost import Rates
from performance.timing import markdown_table, measure_rates, random_weights, time_in_turn

CPU = torch.device("cpu")


def calls(least: int, most: int, seconds: float) -> tuple[str, dict[str, list[float]]]:
    made = []
    subjects = {name: lambda name=name: made.append(name) for name in "abc"}
    times = time_in_turn(subjects, CPU, rounds=(least, most), seconds=seconds, once={"b"})
    return "".join(made), times


def test_in_turn() -> None:
    made, times = calls(3, 9, seconds=0)
    assert made == "abcacac"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 1, "c": 3}
    assert all(second >= 0 for seconds in times.values() for second in seconds)


def test_in_turn_until_the_largest_number() -> None:
    assert calls(1, 4, seconds=60)[0] == "abcacacac"


def test_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_COPY_BYTES", {"cpu": 1000})
    monkeypatch.setattr(benchmark, "_PRODUCTS", {"cpu": ((64, 64, 64), (4, 64, 32))})
    # The copy takes 2 s, of each type's products the first 1 s and the second 0.1 s.
    taken = iter((2.0, 1.0, 0.1, 1.0, 0.1))
    results = []

    def least_seconds(function: Callable[[], torch.Tensor], device: torch.device) -> float:
        results.append(function())
        return next(taken)

    monkeypatch.setattr(benchmark, "_least_seconds", least_seconds)
    expected = Rates(bandwidth=1000, rate=2 * 64**3)
    dtypes = [torch.float32, torch.bfloat16]
    assert measure_rates(CPU, dtypes) == dict.fromkeys(dtypes, expected)
    assert [x.dtype for x in results[1::2]] == dtypes
    assert [tuple(x.shape) for x in results] == [(1000,), *[(64, 64), (4, 32)] * 2]


def test_random_weights() -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GroupNorm(2, 64))

    model = random_weights(build, CPU)
    linear, *norms = model
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for norm in norms:
        assert torch.equal(norm.weight, torch.ones(64))
        assert not norm.bias.any()
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    assert benchmark.num_bytes(model) == 4 * (64 * 64 + 64 + 4 * 64)


def test_markdown_table() -> None:
    columns = {"name": ("name", "", 1), "s": ("time, ms", ".1f", 1e3), "no": ("none", "d", 1)}
    assert markdown_table(columns, [{"name": "a", "s": 0.5}, {"name": "bcdef"}]) == (
        "|  name | time, ms |\n| ----: | -------: |\n|     a |    500.0 |\n| bcdef |          |\n"
    )
    assert markdown_table(columns, []) == ""
