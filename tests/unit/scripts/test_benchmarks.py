"""The benchmarks of orders, sampling and training, each once in a tiny form, and their parts."""

import json
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import lpd
from models.cpu import Dropout
from performance import generation, timing, training
from performance.cost import Rates, num_parameters, tokenizer_cost
from scripts import benchmark_orders, benchmark_sampling, benchmark_training
from tests.commands import run_command
from tests.unit.models.small import small_lpd
from tokenizers.vq_model import VQModel
from util.device import has_bf16_products

CPU = torch.device("cpu")
ROW = generation.Row("lpd_tiny", 64, 4, 3.0)
# Slow enough for operations to decide everywhere.
RATES = {torch.bfloat16: Rates(1e9, 2e9), torch.float32: Rates(1e9, 1e9)}


def run(script: ModuleType, output: Path, *flags: str) -> dict[str, Any]:
    """The JSON that a benchmark writes."""
    script.main([*flags, "--output", str(output)])
    return json.loads(output.read_text())


def test_orders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(benchmark_orders, tmp_path / "a.json", "--num_orders", "2", "--repeats", "3")
    assert result["start_up_s"] > 0
    rows = result["settings"]
    found = [(row["image_size"], row["steps"], row["repulsion"]) for row in rows]
    assert found == [(256, 20, 2), (256, 32, 2), (512, 48, 4)]
    for row in rows:
        assert row["ratio"] == pytest.approx(1e3 * row["release_ms"] / row["median_us"])
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title.endswith("times faster |")
    assert [line.split()[-2] for line in lines] == [f"{row['ratio']:.0f}" for row in rows]


def test_sampling(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(timing, "measure_rates", lambda _, dtypes: {x: RATES[x] for x in dtypes})
    rows = {"four": ROW, "five": generation.Row("lpd_tiny", 64, 5, 1.0)}
    monkeypatch.setattr(benchmark_sampling, "ROWS", rows)
    monkeypatch.setattr(benchmark_sampling, "VQModel", lambda: VQModel(codebook_size=64, ch=32))
    flags = ("--quick", "--device", "cpu", "--batch_sizes", "1", "3")
    result = run(benchmark_sampling, tmp_path / "a.json", *flags)
    assert result["rates"]["bf16"] == {"bandwidth": 1e9, "rate": 2e9}
    records = result["rows"]
    found = [(record["row"], record["dtype"], record["batch_size"]) for record in records]
    assert found == [("four", dtype, size) for dtype in ("bf16", "f32") for size in (1, 3)]
    for record in records:
        packed = record["dtype"] == "f32" or has_bf16_products()
        absent = set() if packed else {"packed_products_ratio"}
        assert benchmark_sampling.COLUMNS.keys() - record.keys() == absent
        assert record["peak_bytes"] > 2**20
        assert record["rounds"] == len(record["times_s"]["fast"]) == 2
        # In float32 the plain path would take most of the time.
        assert len(record["times_s"]["plain"]) == (1 if record["dtype"] == "f32" else 2)
        generation_s = record["fast_s"] - record["vq_s"]
        assert record["transformer_s"] == pytest.approx(generation_s - record["head_s"])
        for name in ("products", *["packed_products"] * packed):
            assert record[f"{name}_ratio"] == pytest.approx(generation_s / record[f"{name}_s"])
        assert record["floor_share"] == pytest.approx(record["floor_s"] / record["fast_s"])
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines()[2:6]] == ["four"] * 4
    assert "plain / fast" in printed.splitlines()[0] and "floor = sum over" in printed

    flags = ("--rows", "five", "--no_plain", "--dtype", "bf16", "--seconds", "0")
    result = run(benchmark_sampling, tmp_path / "a.json", *flags, "--device", "cpu")
    assert [record["batch_size"] for record in result["rows"]] == [1, 4]
    assert all(x["rounds"] == 3 and "plain_s" not in x for x in result["rows"])
    assert "plain / fast" not in capsys.readouterr().out.splitlines()[0]


def test_floor_and_products_are_those_of_a_generation() -> None:
    tokenizer = timing.random_weights(lambda: VQModel(codebook_size=64, ch=32), CPU)
    model = generation.random_model(ROW, tokenizer, torch.bfloat16, CPU)
    case = generation.Case(ROW, model, tokenizer, torch.bfloat16, 3)
    sequences, sizes = 6, (1, *case.sizes)
    with FlopCounterMode(display=False) as counter:
        case.products(packed=False)()
    rows = sequences * (sum(sizes[:-1]) + 16)
    head = 2 * sequences * 16 * model.head.weight.numel()
    operations = 2 * rows * num_parameters(model.blocks, matrices=True) + head
    assert counter.get_total_flops() == operations
    case.packed = False  # the counter does not know packed products
    with FlopCounterMode(display=False) as counter:
        codes = case.head_and_drawing()()
    assert counter.get_total_flops() == head and codes.shape == (3, 16) and codes.max() < 64
    vq = tokenizer_cost(tokenizer, 16, 4)["decoder"].operations
    # Attention adds little to so few rows.
    assert case.floor(RATES) == pytest.approx(operations / 2e9 + 3 * vq / 1e9, rel=0.02)


def test_both_steps_train_the_same_network() -> None:
    """The plain one without what makes the fast one fast."""
    fast, plain = (training.Step(small_lpd, CPU, plain=plain) for plain in (False, True))
    kinds = [{type(x) for x in step.model.modules()} for step in (fast, plain)]
    assert Dropout in kinds[0] and nn.Dropout in kinds[1] and Dropout not in kinds[1]
    assert all(x.weight.eq(1).all() for x in fast.model.modules() if isinstance(x, nn.LayerNorm))
    assert (fast.dtype, plain.dtype) == (torch.bfloat16, torch.float32)
    with training.random_batches(fast.model, 4, CPU) as batches:
        batch = next(batches)
    before, kept = plain.model.head.weight.detach().clone(), lpd.group_causal_mask
    for sizes in ([1, 3, 5, 7], [1, 15]):
        kept.cache_clear()
        loss = plain(sizes, batch)
        assert lpd.group_causal_mask is kept and kept.cache_info()[:2] == (0, 0)
        torch.testing.assert_close(fast(sizes, batch), loss, rtol=2e-3, atol=0)
        assert kept.cache_info().misses == 1
    assert not torch.equal(plain.model.head.weight, before)


def test_share_of_time_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def in_turn(calls: timing.Calls, _: timing.Effort) -> dict[str, list[float]]:
        for name in ("step", "wait", "step", "wait"):
            calls[name]()
        return {"step": [2.0, 4.0], "wait": [1.0, 1.0]}

    monkeypatch.setattr(timing, "time_in_turn", in_turn)
    share = training.waiting_share(lambda *x: steps.append(x), iter("abc"), [[1], [2]], None)
    assert share == 0.25 and steps == [([1], "a"), ([2], "b")]


def test_training(tmp_path: Path, monkeypatch, capsys) -> None:
    assert [*benchmark_training.SMALL_ROWS] == ["lpd_tiny_32", "lpd_l_x2_256"]
    monkeypatch.setattr(timing, "_PRODUCTS", {"cpu": ((4, 8, 16), (8, 16, 32))})
    rows = {"tiny": benchmark_training.Row(partial(small_lpd, proj_dropout=0.1), 4, steps=4)}
    monkeypatch.setattr(benchmark_training, "SMALL_ROWS", rows)
    monkeypatch.setattr(benchmark_training, "ROWS", rows)
    flags = ("--quick", "--device", "cpu", "--batch_sizes", "2", "4")
    records = run(benchmark_training, tmp_path / "a.json", *flags)["rows"]
    assert [record["batch_size"] for record in records] == [2, 4]
    network = small_lpd()
    parameters = num_parameters(network.blocks) + network.head.weight.numel()
    for record in records:
        assert benchmark_training.COLUMNS.keys() <= record.keys() and record["peak_bytes"] > 2**20
        assert record["tokens_per_s"] == pytest.approx(record["images_per_s"] * 2 * 16)
        assert 0 <= record["waiting_share"] < 1
        flop_per_s = record["tokens_per_s"] * 6 * parameters
        assert record["flop_per_s"] == pytest.approx(flop_per_s)
        # The machine's rate, in the same rounds.
        rate = max(1024 / record["4x8x16_s"], 8192 / record["8x16x32_s"])
        assert record["rate_share"] == pytest.approx(flop_per_s / rate)
        assert record["products_share"] == pytest.approx(record["products_s"] / record["fast_s"])
        assert {len(seconds) for seconds in record["times_s"].values()} == {record["rounds"]} == {2}
    _, _, *lines = capsys.readouterr().out.splitlines()
    for line, record in zip(lines[:2], records, strict=True):
        assert line.split()[1] == "tiny" and f" {record['images_per_s']:.2f} " in line

    effort = timing.Effort(CPU, 1, 0, plain_rounds=0)
    record, calls = training.measure(*rows["tiny"][:2], effort, steps=4)
    assert not {"plain_s", "ratio"} & record.keys()
    with FlopCounterMode(display=False) as products:
        calls["products"]()
    with FlopCounterMode(display=False) as fast:
        calls["fast"]()
    last = training.group_sizes(16, 4)[-1]
    multiplied = 4 * (1 + 16 - last + 16) * num_parameters(network.blocks, matrices=True)
    multiplied += 4 * 16 * network.head.weight.numel()
    assert products.get_total_flops() == 3 * 2 * multiplied
    # A step's own are these and attention's.
    assert 0.75 < products.get_total_flops() / fast.get_total_flops() < 1


@pytest.mark.parametrize("script", ["orders", "sampling", "training"])
def test_bad_flag_is_one_line(script: str) -> None:
    done = run_command(f"scripts/benchmark_{script}.py", "--output", "/dev/null/a.json")
    assert done.returncode == 2 and done.stderr.startswith("error: --output: /dev/null")
