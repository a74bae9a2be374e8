"""The benchmark of training, in a tiny form."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dataset.batches import Batch
from models import masks
from models.cpu import Dropout
from models.lpd import LPD, lpd_l
from performance import timing as benchmark
from scripts import benchmark_training
from scripts.benchmark_training import Effort, Products, Row, Step
from tests.commands import run_command
from tests.unit.models.small import VOCAB, small_lpd
from util.errors import UserError

CPU = torch.device("cpu")
TINY = partial(small_lpd, proj_dropout=0.1)
ROW = Row("tiny", TINY, batch_size=4, steps=4)
SIZES = [1, 3, 5, 7]


@pytest.fixture
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_PRODUCTS", {"cpu": ((8, 16, 32), (64, 64, 64))})


def random_batch(batch_size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    orders = torch.rand(batch_size, 16, generator=generator).argsort(dim=1)
    tokens = torch.randint(VOCAB, (batch_size, 16), generator=generator)
    return Batch(tokens, torch.arange(batch_size), orders, torch.arange(batch_size) == 1)


def test_operations_of_an_image() -> None:
    with torch.device("meta"):
        model = lpd_l()
    assert benchmark_training.counted_parameters(model) == pytest.approx(319e6, rel=0.002)
    assert benchmark_training.operations_per_image(model) == pytest.approx(0.98e12, rel=0.002)


def test_both_steps_train_the_same_network() -> None:
    build, batch = partial(small_lpd, proj_dropout=0.0), random_batch()
    fast, plain = (Step(build, CPU, plain=plain) for plain in (False, True))
    assert (fast.dtype, plain.dtype) == (torch.bfloat16, torch.float32)
    before = plain.model.head.weight.detach().clone()
    for sizes in (SIZES, [1, 15]):
        torch.testing.assert_close(fast(sizes, batch), plain(sizes, batch), rtol=2e-3, atol=0)
    assert not torch.equal(plain.model.head.weight, before)


def test_the_plain_step_does_without_what_makes_the_fast_one_fast() -> None:
    step = Step(TINY, CPU, plain=True)
    dropouts = [type(x) for x in step.model.modules() if isinstance(x, nn.Dropout)]
    assert set(dropouts) == {nn.Dropout}
    assert any(isinstance(x, Dropout) for x in Step(TINY, CPU, plain=False).model.modules())
    kept = masks._dense_mask
    kept.cache_clear()
    step(SIZES, random_batch())
    assert masks._dense_mask is kept
    assert kept.cache_info()[:2] == (0, 0)
    Step(TINY, CPU, plain=False)(SIZES, random_batch())
    assert kept.cache_info().misses == 1


def test_products_are_those_of_the_rows_that_are_needed() -> None:
    products = Products(TINY(), torch.float32, batch_size=4)
    with FlopCounterMode(display=False) as counter:
        products(SIZES, random_batch())
    rows = 4 * (1 + 16 - 7 + 16)
    in_blocks = rows * 2 * (3 + 1 + 4 + 4) * 32**2
    assert counter.get_total_flops() == 3 * 2 * (in_blocks + 4 * 16 * 32 * VOCAB)


def test_share_of_time_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    def batches() -> Iterator[int]:
        passes(100)  # the first batch does not count
        while True:
            yield 0
            passes(1)

    monkeypatch.setattr(benchmark_training, "time", SimpleNamespace(perf_counter=lambda: now))
    steps = []

    def step(*work: object) -> None:
        steps.append(work)
        passes(3)

    lists = [[1], [2], [3], [4]]
    effort = Effort(CPU, rounds=2, seconds=9)
    assert benchmark_training.waiting_share(step, batches(), lists, effort) == 0.25
    assert [sizes for sizes, _ in steps] == lists[:3]


@pytest.mark.parametrize("plain", [True, False])
def test_a_whole_run(
    plain: bool,
    small_products: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmark_training, "SMALL_ROWS", (ROW,))
    monkeypatch.setattr(benchmark_training, "ROWS", (ROW,))
    path = tmp_path / "new" / "training.json"
    flags = ["--quick", "--seconds", "0", "--device", "cpu", "--output", str(path)]
    flags += ["--batch_sizes", "2", "4"] if plain else ["--no_plain"]
    benchmark_training.main(benchmark_training.parse_args(flags))
    result = json.loads(path.read_text())
    assert result["machine"]["threads"] == torch.get_num_threads()
    records = result["rows"]
    assert [record["batch_size"] for record in records] == ([2, 4] if plain else [4])
    for record in records:
        counted = record["counted"]
        assert counted["operations_per_image"] == 2 * 16 * 6 * counted["parameters"]
        images_per_s = record["batch_size"] / record["fast_s"]
        assert record["images_per_s"] == pytest.approx(images_per_s)
        assert record["tokens_per_s"] == pytest.approx(images_per_s * 32)
        flop_per_s = images_per_s * counted["operations_per_image"]
        assert record["flop_per_s"] == pytest.approx(flop_per_s)
        # The faster product counts, by the median of the same rounds.
        times = record["times_s"]
        rate = max(
            2 * rows * width * out / statistics.median(times[f"{rows} x {width} x {out}"])
            for rows, width, out in ((8, 16, 32), (64, 64, 64))
        )
        assert counted["rate"] == pytest.approx(rate)
        assert record["rate_share"] == pytest.approx(flop_per_s / rate)
        assert record["products_share"] == pytest.approx(record["products_s"] / record["fast_s"])
        assert 0 < record["products_share"] < 1
        assert 0 <= record["waiting_share"] < 1
        assert record["peak_bytes"] > 2**20
        assert record["first_steps_s"] > 0
        assert record["rounds"] == 2
        assert {len(seconds) for seconds in record["times_s"].values()} == {2}
        assert ("plain_s" in record) == ("ratio" in record) == plain
        if plain:
            assert record["ratio"] == pytest.approx(record["plain_s"] / record["fast_s"])
    printed = capsys.readouterr().out
    title, _, *lines = printed.splitlines()
    assert ("plain / fast" in title) == plain
    for line, record in zip(lines[: len(records)], records, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == ["tiny", str(record["batch_size"])]
        assert f"{record['images_per_s']:.2f}" in cells
    assert result["formula"] in printed
    assert "tiny, batch 4: 2 x 16 x 6 x " in printed


def test_a_batch_that_does_not_fit_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def measure(case: tuple[Row, int], effort: Effort) -> dict[str, int]:
        row, batch_size = case
        if row.name == "large" and batch_size > 5:
            raise torch.OutOfMemoryError
        return {"rounds": effort.rounds}

    monkeypatch.setattr(benchmark_training, "measure", measure)
    monkeypatch.setattr(benchmark_training, "Case", lambda row, _, size, effort: (row, size))
    rows = [Row("large", TINY, 4, steps=4), Row("small", TINY, 4, steps=4)]
    effort = Effort(CPU, batch_sizes=[4, 8, 16], rounds=2)
    kept: list[int] = []
    with caplog.at_level(logging.WARNING):
        records = benchmark_training.measure_rows(
            rows, effort, lambda result: kept.append(len(result["rows"]))
        )["rows"]
    assert kept == [1, 4]
    found = [(record["row"], record["batch_size"], record["rounds"]) for record in records]
    assert found == [("large", 4, 2), *(("small", size, 2) for size in (4, 8, 16))]
    assert caplog.messages == [
        "large: a batch of 8 does not fit into the memory of cpu, the largest that does is 5"
    ]


@pytest.mark.parametrize(
    ("flags", "rows"),
    [
        ([], ["lpd_tiny_32", "lpd_l_x2_256"]),
        (["--quick"], ["lpd_tiny_32", "lpd_l_x2_256"]),
        (["--rows", "lpd_xl_512", "lpd_l_256"], ["lpd_l_256", "lpd_xl_512"]),
    ],
)
def test_rows(flags: list[str], rows: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure_rows(rows: list[Row], effort: Effort, keep: object) -> dict[str, list]:
        asked.extend(row.name for row in rows)
        return {"rows": []}

    monkeypatch.setattr(benchmark_training, "measure_rows", measure_rows)
    benchmark_training.main(benchmark_training.parse_args([*flags, "--device", "cpu"]))
    assert asked == rows


def test_networks_of_the_rows() -> None:
    def sizes(row: Row) -> tuple[int, ...]:
        with torch.device("meta"):
            model: LPD = row.build()
        return (len(model.blocks), model.pos_embed.shape[-1], model.grid.num_tokens, row.batch_size)

    assert {row.name: sizes(row) for row in benchmark_training.ROWS} == {
        "lpd_tiny_32": (6, 192, 64, 64),
        "lpd_l_x2_256": (2, 1024, 256, 8),
        "lpd_l_256": (24, 1024, 256, 64),
        "lpd_xl_256": (36, 1280, 256, 32),
        "lpd_xxl_256": (48, 1536, 256, 32),
        "lpd_l_512": (24, 1024, 1024, 16),
        "lpd_xl_512": (36, 1280, 1024, 8),
    }


def test_bad_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    flags = ["--device", "cpu", "--output", str(tmp_path / "file" / "training.json")]
    with pytest.raises(UserError, match="--output: "):
        benchmark_training.main(benchmark_training.parse_args(flags))


def test_bad_flag_is_one_line() -> None:
    done = run_command("scripts/benchmark_training.py", "--batch_sizes", "0")
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: --batch_sizes: found '0', expected a whole number from 1 to 1000000000\n"
    )
