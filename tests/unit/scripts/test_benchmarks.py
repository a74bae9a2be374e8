"""The benchmarks of orders, sampling and training, each once in a tiny form, and their parts."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dataset.batches import Batch
from models import masks
from models.cpu import Dropout
from models.fast import NetworkWeights
from performance import timing as benchmark
from performance.cost import Rates
from scripts import benchmark_orders, benchmark_sampling, benchmark_training
from scripts.benchmark_sampling import Case, Row, bare_products, random_model
from scripts.benchmark_training import Step, waiting_share
from tests.commands import ROOT, run_command
from tests.unit.models.small import VOCAB, small_lpd
from tokenizers.vq_model import VQModel

CPU = torch.device("cpu")
ROW = Row("lpd_tiny", 64, 4, 3.0)
SIZES = [1, 3, 5, 7]


def run(script: ModuleType, output: Path, *flags: str) -> dict[str, Any]:
    """The JSON that a benchmark writes."""
    script.main(script.parse_args([*flags, "--output", str(output)]))
    return json.loads(output.read_text())


def committed_record(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "docs" / "performance" / name).read_text())["rows"][0]


def test_orders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(benchmark_orders, tmp_path / "a.json", "--num_orders", "2", "--repeats", "3")
    assert result["start_up_s"] > 0
    rows = result["settings"]
    found = [(row["image_size"], row["steps"], row["repulsion"]) for row in rows]
    assert found == [(256, 20, 2), (256, 32, 2), (512, 48, 4)]
    for row in rows:
        assert 0 < row["best_us"] <= row["median_us"]
        assert row["ratio"] == pytest.approx(1e3 * row["release_ms"] / row["median_us"])
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title.endswith("times faster |")
    assert [line.split()[-2] for line in lines] == [f"{row['ratio']:.0f}" for row in rows]


@pytest.fixture
def small_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny networks, and a machine slow enough for operations to decide everywhere."""
    rates = {torch.bfloat16: Rates(1e9, 2e9), torch.float32: Rates(1e9, 1e9)}
    monkeypatch.setattr(benchmark, "measure_rates", lambda _, dtypes: {x: rates[x] for x in dtypes})
    monkeypatch.setattr(benchmark_sampling, "ROWS", (ROW, Row("lpd_tiny", 64, 5, 1.0)))
    monkeypatch.setattr(benchmark_sampling, "VQModel", lambda: VQModel(codebook_size=64, ch=32))


def test_sampling(tmp_path: Path, capsys: pytest.CaptureFixture[str], small_sampling: None) -> None:
    flags = ("--quick", "--device", "cpu", "--batch_sizes", "1", "3")
    result = run(benchmark_sampling, tmp_path / "a.json", *flags)
    assert result["rates"] == {
        "bf16": {"bandwidth": 1e9, "rate": 2e9},
        "f32": {"bandwidth": 1e9, "rate": 1e9},
    }
    records = result["rows"]
    found = [(record["row"], record["dtype"], record["batch_size"]) for record in records]
    assert found == [("lpd_tiny_64_4", dtype, size) for dtype in ("bf16", "f32") for size in (1, 3)]
    assert records[0].keys() == committed_record("sampling_cpu_quick.json").keys()
    for record in records:
        assert record["rounds"] == len(record["times_s"]["fast"]) == 2
        assert len(record["times_s"]["plain"]) == (1 if record["dtype"] == "f32" else 2)
        assert 0 < record["fast_s"] <= record["fast_p95_s"]
        assert record["images_per_s"] == pytest.approx(record["batch_size"] / record["fast_s"])
        assert record["ratio"] == pytest.approx(record["plain_s"] / record["fast_s"])
        parts = record["transformer_s"] + record["head_s"] + record["vq_s"]
        assert parts == pytest.approx(record["fast_s"])
        generation_s = record["fast_s"] - record["vq_s"]
        for name in ("products", "packed_products"):
            assert record[f"{name}_ratio"] == pytest.approx(generation_s / record[f"{name}_s"])
        steps, vq = record["floor"]["steps"], record["floor"]["vq"]
        assert steps["rate"] == {"bf16": 2e9, "f32": 1e9}[record["dtype"]]
        assert steps["seconds"] == pytest.approx(steps["operations"] / steps["rate"])
        assert vq["dtype"] == "f32" and vq["seconds"] == pytest.approx(vq["operations"] / 1e9)
        assert record["floor_s"] == steps["seconds"] + vq["seconds"]
        assert record["floor_share"] == pytest.approx(record["floor_s"] / record["fast_s"])
        assert record["peak_bytes"] > 1e8 and record["cold_start_s"] > 0
    generation = records[1]["floor"]["generation"]
    assert generation["sequences"] == 6 and sum(generation["group_sizes"]) == 16
    assert generation["head_parameters"] == 64 * 192
    one, three = (record["floor"]["vq"] for record in records[:2])
    assert three["operations"] == 3 * one["operations"] and three["bytes"] == one["bytes"]
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines()[2:6]] == ["lpd_tiny_64_4"] * 4
    assert result["formula"] in printed and "plain / fast" in printed.splitlines()[0]

    flags = ("--rows", "lpd_tiny_64_5", "--no_plain", "--dtype", "bf16", "--seconds", "0")
    result = run(benchmark_sampling, tmp_path / "a.json", *flags, "--device", "cpu")
    assert [record["batch_size"] for record in result["rows"]] == [1, 4]
    assert all(x["rounds"] == 3 and x["ratio"] is None for x in result["rows"])
    assert "plain / fast" not in capsys.readouterr().out.splitlines()[0]


def test_bare_products_are_those_of_a_generation() -> None:
    tokenizer = benchmark.random_weights(lambda: VQModel(codebook_size=64, ch=32), CPU)
    model = random_model(ROW, tokenizer, torch.float32, CPU)
    case = Case(ROW, model, tokenizer, torch.float32, 2)
    with FlopCounterMode(display=False) as counter:
        bare_products(NetworkWeights.prepare(model, torch.float32, False), case.generation)()
    matrices = sum(weight.numel() for weight in model.blocks.parameters() if weight.ndim == 2)
    rows = 4 * sum(map(sum, case.generation.step_rows()))
    head = 4 * 16 * model.head.weight.numel()
    assert counter.get_total_flops() == 2 * (rows * matrices + head)


def random_batch(batch_size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    orders = torch.rand(batch_size, 16, generator=generator).argsort(dim=1)
    tokens = torch.randint(VOCAB, (batch_size, 16), generator=generator)
    return Batch(tokens, torch.arange(batch_size), orders, torch.arange(batch_size) == 1)


def test_both_steps_train_the_same_network() -> None:
    """The plain one without what makes the fast one fast."""
    build, batch = partial(small_lpd, proj_dropout=0.0), random_batch()
    fast, plain = (Step(build, CPU, plain=plain) for plain in (False, True))
    assert (fast.dtype, plain.dtype) == (torch.bfloat16, torch.float32)
    before, kept = plain.model.head.weight.detach().clone(), masks._mask
    for sizes in (SIZES, [1, 15]):
        kept.cache_clear()
        loss = plain(sizes, batch)
        assert masks._mask is kept and kept.cache_info()[:2] == (0, 0)
        torch.testing.assert_close(fast(sizes, batch), loss, rtol=2e-3, atol=0)
        assert kept.cache_info().misses == 1
    assert not torch.equal(plain.model.head.weight, before)
    fast, plain = (
        {type(x) for x in Step(small_lpd, CPU, plain=plain).model.modules()} & {Dropout, nn.Dropout}
        for plain in (False, True)
    )
    assert plain == {nn.Dropout} and Dropout in fast


def test_products_are_those_of_the_rows_that_are_needed() -> None:
    multiply = benchmark_training.bare_products(small_lpd(), torch.float32, batch_size=4)
    with FlopCounterMode(display=False) as counter:
        multiply(SIZES, random_batch())
    rows = 4 * (1 + 16 - 7 + 16)
    in_blocks = rows * 2 * (3 + 1 + 4 + 4) * 32**2
    assert counter.get_total_flops() == 3 * 2 * (in_blocks + 4 * 16 * 32 * VOCAB)


def test_share_of_time_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now, steps = 0.0, []

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    def batches() -> Iterator[int]:
        passes(100)  # the first batch does not count
        while True:
            yield 0
            passes(1)

    def step(*work: object) -> None:
        steps.append(work)
        passes(3)

    monkeypatch.setattr(benchmark_training, "time", SimpleNamespace(perf_counter=lambda: now))
    lists, effort = [[1], [2], [3], [4]], benchmark.Effort(CPU, rounds=2, seconds=9)
    assert waiting_share(step, batches(), lists, effort) == 0.25
    assert [sizes for sizes, _ in steps] == lists[:3]


def test_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [row.name for row in benchmark_training.SMALL_ROWS] == ["lpd_tiny_32", "lpd_l_x2_256"]
    row = benchmark_training.Row("tiny", partial(small_lpd, proj_dropout=0.1), 4, steps=4)
    monkeypatch.setattr(benchmark, "_PRODUCTS", {"cpu": ((8, 16, 32), (64, 64, 64))})
    monkeypatch.setattr(benchmark_training, "SMALL_ROWS", (row,))
    monkeypatch.setattr(benchmark_training, "NUM_IMAGES", 8)
    flags = ("--quick", "--device", "cpu", "--batch_sizes", "2", "4")
    result = run(benchmark_training, tmp_path / "a.json", *flags)
    records = result["rows"]
    assert [record["batch_size"] for record in records] == [2, 4]
    committed = committed_record("training_cpu.json")
    assert records[0].keys() == committed.keys()
    assert records[0]["counted"].keys() == committed["counted"].keys()
    for record in records:
        counted = record["counted"]
        assert counted["operations_per_image"] == 2 * 16 * 6 * counted["parameters"]
        images_per_s = record["batch_size"] / record["fast_s"]
        assert record["images_per_s"] == pytest.approx(images_per_s)
        assert record["tokens_per_s"] == pytest.approx(images_per_s * 32)
        flop_per_s = images_per_s * counted["operations_per_image"]
        assert record["flop_per_s"] == pytest.approx(flop_per_s)
        # The faster product counts, by the median of the same rounds.
        rate = max(
            2 * n * m * k / statistics.median(record["times_s"][f"{n} x {m} x {k}"])
            for n, m, k in ((8, 16, 32), (64, 64, 64))
        )
        assert counted["rate"] == pytest.approx(rate)
        assert record["rate_share"] == pytest.approx(flop_per_s / rate)
        assert record["products_share"] == pytest.approx(record["products_s"] / record["fast_s"])
        assert record["ratio"] == pytest.approx(record["plain_s"] / record["fast_s"])
        assert 0 < record["products_share"] < 1 and 0 <= record["waiting_share"] < 1
        assert record["peak_bytes"] > 2**20 and record["first_steps_s"] > 0
        assert {len(seconds) for seconds in record["times_s"].values()} == {record["rounds"]} == {2}
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert "plain / fast" in title
    for line, record in zip(lines[:2], records, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == ["tiny", str(record["batch_size"])]
        assert f"{record['images_per_s']:.2f}" in cells

    result = run(benchmark_training, tmp_path / "a.json", *flags[:3], "--no_plain")
    (record,) = result["rows"]
    assert record["batch_size"] == 4 and not {"plain_s", "ratio"} & record.keys()


@pytest.mark.parametrize(
    ("script", "flag"),
    [("orders", "--repeats"), ("sampling", "--batch_sizes"), ("training", "--batch_sizes")],
)
def test_bad_flag_is_one_line(script: str, flag: str) -> None:
    done = run_command(f"scripts/benchmark_{script}.py", flag, "0")
    assert done.returncode == 2
    expected = "expected a whole number from 1 to 1000000000"
    assert done.stderr == f"error: {flag}: found '0', {expected}\n"
