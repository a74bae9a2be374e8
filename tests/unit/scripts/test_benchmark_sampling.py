"""The benchmark of sampling, with a tiny network and tokenizer."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from models.lpd import LPD
from performance import timing as benchmark
from performance.cost import Rates
from scripts import benchmark_sampling
from scripts.benchmark_sampling import (
    Case,
    Effort,
    Row,
    bare_products,
    decoder_work,
    measure_rows,
    random_model,
    report,
)
from tests.commands import run_command
from tokenizers.vq_model import VQModel
from util.errors import UserError

CPU = torch.device("cpu")
ROW = Row("lpd_tiny", 64, 4, 3.0)
RATES = {
    torch.bfloat16: Rates(bandwidth=1e9, rate=2e9),
    torch.float32: Rates(bandwidth=1e9, rate=1e9),
}


@pytest.fixture(autouse=True)
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        benchmark, "measure_rates", lambda _, dtypes: {dtype: RATES[dtype] for dtype in dtypes}
    )


@pytest.fixture(scope="module")
def tokenizer() -> VQModel:
    return benchmark.random_weights(lambda: VQModel(codebook_size=64, ch=32), CPU)


def effort(**options: Any) -> Effort:
    defaults = {"dtypes": ("bf16", "f32"), "batch_sizes": (1, 3), "rounds": 2, "seconds": 0}
    return Effort(CPU, **{**defaults, **options})


def ignore(result: dict[str, Any]) -> None:
    """Where nothing is to be written."""


def test_records_and_report(tokenizer: VQModel) -> None:
    kept = []
    result = measure_rows([ROW], tokenizer, effort(plain_once=("f32",)), kept.append)
    assert kept == [result] * 2  # once a series
    result = json.loads(json.dumps(result))
    assert result["rates"] == {
        "bf16": {"bandwidth": 1e9, "rate": 2e9},
        "f32": {"bandwidth": 1e9, "rate": 1e9},
    }
    records = result["rows"]
    found = [(record["row"], record["dtype"], record["batch_size"]) for record in records]
    assert found == [("lpd_tiny_64_4", dtype, size) for dtype in ("bf16", "f32") for size in (1, 3)]
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
        floor = record["floor"]
        assert record["floor_s"] == floor["steps"]["seconds"] + floor["vq"]["seconds"]
        assert record["floor_share"] == pytest.approx(record["floor_s"] / record["fast_s"])
        assert record["peak_bytes"] > 1e8
        assert record["cold_start_s"] > 0
    lines = report(records).splitlines()
    assert [line.split()[1] for line in lines[2:6]] == ["lpd_tiny_64_4"] * 4
    assert all(lines[0].count("|") == line.count("|") for line in lines[:6])
    assert lines[-1].startswith("lpd_tiny_64_4, f32, batch 3: step by step max(")
    assert lines[-1].endswith(f"together {1e3 * records[-1]['floor_s']:.1f} ms")


def test_floor_of_tiny_network(tokenizer: VQModel) -> None:
    options = {"dtypes": ("bf16",), "batch_sizes": (3,), "plain": False}
    (record,) = measure_rows([ROW], tokenizer, effort(**options), ignore)["rows"]
    assert record["ratio"] is None and "plain_s" not in record
    assert "plain" not in report([record]).splitlines()[0]
    generation = record["floor"]["generation"]
    assert generation["sequences"] == 6 and sum(generation["group_sizes"]) == 16
    assert generation["head_parameters"] == 64 * 192
    steps = record["floor"]["steps"]
    assert steps["rate"] == 2e9
    # Slow enough for operations to decide everywhere.
    assert steps["seconds"] == pytest.approx(steps["operations"] / 2e9)
    vq = record["floor"]["vq"]
    assert vq["dtype"] == "f32"
    assert vq["seconds"] == pytest.approx(vq["operations"] / 1e9)


def test_operations_of_published_decoder() -> None:
    with torch.device("meta"):
        tokenizer = VQModel()
    case = object.__new__(Case)
    case.tokenizer, case.sizes, case.batch_size = tokenizer, [256], 2
    case.decoder = type("Decoder", (), {"dtype": torch.float16})
    work = decoder_work(case)
    assert work.operations == pytest.approx(2 * 0.25e12, rel=0.05)
    assert work.bytes == 2 * sum(weight.numel() for weight in tokenizer.decoder.parameters())


def test_bare_products_are_those_of_a_generation(tokenizer: VQModel) -> None:
    model = random_model(ROW, tokenizer, CPU)
    generation = Case(ROW, model, tokenizer, torch.float32, 2).generation
    weights = benchmark_sampling.NetworkWeights.prepare(model, torch.float32, packed=False)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        bare_products(weights, generation)()
    matrices = sum(weight.numel() for weight in model.blocks.parameters() if weight.ndim == 2)
    rows = 4 * sum(map(sum, generation.step_rows()))
    head = 4 * 16 * model.head.weight.numel()
    assert counter.get_total_flops() == 2 * (rows * matrices + head)


def test_out_of_memory_is_one_line(
    tokenizer: VQModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def generate(model: LPD, labels: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        tried.append(len(labels))
        if len(labels) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.zeros(len(labels), 16, dtype=torch.int64)

    monkeypatch.setattr(benchmark_sampling, "generate", generate)
    rows = [ROW, Row("lpd_tiny", 64, 5, 3.0)]
    sizes = (1, 8, 16)
    with caplog.at_level(logging.WARNING):
        result = measure_rows(rows, tokenizer, effort(dtypes=("f32",), batch_sizes=sizes), ignore)
    assert [(record["row"], record["batch_size"]) for record in result["rows"]] == [
        ("lpd_tiny_64_4", 1),
        ("lpd_tiny_64_5", 1),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        f"lpd_tiny_64_{steps}, f32: a batch of 8 does not fit into the memory of cpu, "
        "the largest that does is 5"
        for steps in (4, 5)
    ]
    assert 16 not in tried


def test_plain_path_alone_may_not_fit(
    tokenizer: VQModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def plain(case: Case) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Case, "plain", plain)
    with caplog.at_level(logging.WARNING):
        options = {"dtypes": ("f32",), "batch_sizes": (2,)}
        (record,) = measure_rows([ROW], tokenizer, effort(**options), ignore)["rows"]
    assert record["fast_s"] > 0
    assert record["ratio"] is None
    assert [line.getMessage() for line in caplog.records] == [
        "the plain path has no room for a batch of 2"
    ]


def test_command_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark_sampling, "ROWS", (ROW, Row("lpd_tiny", 64, 5, 1.0)))
    monkeypatch.setattr(benchmark_sampling, "VQModel", lambda: VQModel(codebook_size=64, ch=32))
    path = tmp_path / "new" / "sampling.json"
    flags = ["--quick", "--device", "cpu", "--no_plain", "--output", str(path)]
    benchmark_sampling.main(benchmark_sampling.parse_args(flags))
    result = json.loads(path.read_text())
    assert set(result) == {"machine", "command", "formula", "rates", "rows"}
    assert result["machine"]["threads"] == torch.get_num_threads()
    found = [(record["row"], record["dtype"]) for record in result["rows"]]
    assert found == [("lpd_tiny_64_4", "bf16"), ("lpd_tiny_64_4", "f32")]
    assert capsys.readouterr().out == report(result["rows"])


def test_bad_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    flags = ["--device", "cpu", "--output", str(tmp_path / "file" / "sampling.json")]
    with pytest.raises(UserError, match="--output: "):
        benchmark_sampling.main(benchmark_sampling.parse_args(flags))


def test_bad_flag_is_one_line() -> None:
    done = run_command("scripts/benchmark_sampling.py", "--batch_sizes", "0")
    assert done.returncode == 2
    expected = "expected a whole number from 1 to 1000000000"
    assert done.stderr == f"error: --batch_sizes: found '0', {expected}\n"
