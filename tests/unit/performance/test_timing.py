"""What benchmarks share."""

import json
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from performance import timing as benchmark
from performance.cost import Rates
from performance.timing import Effort, Record, markdown_table
from tests.unit.models.small import VOCAB, small_lpd
from util.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("rounds", "seconds", "expected"), [(3, 0, 3), (1, 60, 30)])
def test_in_turn(rounds: int, seconds: float, expected: int) -> None:
    made = []
    calls = {name: lambda name=name: made.append(name) for name in ("fast", "plain")}
    record = benchmark.compare(calls, 8, Effort(CPU, rounds, seconds))
    assert made == expected * ["fast", "plain"] and record["rounds"] == expected
    fast, plain = (sorted(record["times_s"][name]) for name in calls)
    assert len(fast) == len(plain) == expected
    assert record["fast_s"] == statistics.median(fast)
    assert record["fast_s"] <= record["fast_p95_s"] <= fast[-1]
    assert record["images_per_s"] == 8 / record["fast_s"]
    assert record["ratio"] == statistics.median(plain) / record["fast_s"]


def test_series_go_to_table_and_file_until_memory_ends(tmp_path, capsys, caplog, bars) -> None:
    kept = []

    def series(name: str, fits: int) -> Iterator[Record]:
        for size in (1, 2, 3):
            if size > fits:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            yield {"row": name, "size": size}
            kept.append(json.loads((tmp_path / "new" / "a.json").read_text())["rows"])

    write = partial(benchmark.write_figures, tmp_path / "new" / "a.json", CPU, rates=1)
    both = {"large": series("large", 2), "small": series("small", 3)}
    columns = {"row": ("row", "", 1), "size": ("size", "d", 1)}
    benchmark.show(both, columns, "What it means.\n", write)
    expected = [{"row": "large", "size": size} for size in (1, 2)]
    expected += [{"row": "small", "size": size} for size in (1, 2, 3)]
    assert [(bar.n, bar.total) for bar in bars] == [(2, 2)]
    assert kept == [expected[:stop] for stop in (1, 2, 3, 4, 5)]
    warnings = [x.getMessage() for x in caplog.records if x.levelname == "WARNING"]
    assert warnings == ["large: the next batch size does not fit: CUDA out of memory."]
    result = json.loads((tmp_path / "new" / "a.json").read_text())
    assert set(result) == {"machine", "command", "rates", "rows"}
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert capsys.readouterr().out == f"{markdown_table(columns, expected)}\nWhat it means.\n"
    with pytest.raises(UserError, match="--output: "):
        benchmark.write_figures(tmp_path / "new" / "a.json" / "b.json", CPU)


def test_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_COPY_BYTES", {"cpu": 1000})
    monkeypatch.setattr(benchmark, "_PRODUCTS", {"cpu": ((64, 64, 64), (4, 64, 32))})
    # The copy takes 2 s at best, the first product 1 s, in float32 when packed, and others 0.1 s.
    least = (2.0, 1.0, 0.1, 0.1, 1.0, 0.1)
    taken = iter((9.0, 9.0, 2.0, 9.0, *(second for one in least for second in (one, *3 * (9.0,)))))
    results = []

    def seconds_of(function: Callable[[], torch.Tensor], device: torch.device) -> float:
        results.append(function())
        return next(taken)

    monkeypatch.setattr(benchmark, "seconds_of", seconds_of)
    expected = Rates(bandwidth=1000, rate=2 * 64**3)
    dtypes = [torch.float32, torch.bfloat16]
    assert benchmark.measure_rates(CPU, dtypes) == dict.fromkeys(dtypes, expected)
    copied, *products = results[::4]
    assert copied.shape == (1000,)
    assert [x.dtype for x in products] == 4 * dtypes[:1] + 2 * dtypes[1:]
    assert [len(x) for x in products] == [64, 64, 4, 4, 64, 4]


@pytest.mark.parametrize("backward", [False, True])
def test_bare_products(backward: bool) -> None:
    multiply = benchmark.bare_products(small_lpd(), torch.float32, most=6)
    with FlopCounterMode(display=False) as counter:
        multiply(6, 4, backward=backward)
    in_blocks = 6 * 2 * (3 + 1 + 4 + 4) * 32**2
    assert counter.get_total_flops() == (3 if backward else 1) * 2 * (in_blocks + 4 * 32 * VOCAB)


def test_markdown_table() -> None:
    columns = {"name": ("name", "", 1), "s": ("time, ms", ".1f", 1e3), "no": ("none", "d", 1)}
    assert markdown_table(columns, [{"name": "a", "s": 0.5}, {"name": "bcdef"}]) == (
        "|  name | time, ms |\n| ----: | -------: |\n|     a |    500.0 |\n| bcdef |          |\n"
    )
    assert markdown_table(columns, []) == ""
