"""The benchmark of the orders, in a tiny form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import benchmark_orders
from tests.commands import run_command
from util.errors import UserError


def test_table_and_json_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "orders.json"
    flags = ["--num_orders", "2", "--repeats", "3", "--output", str(path)]
    benchmark_orders.main(benchmark_orders.parse_args(flags))
    result = json.loads(path.read_text())
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


def test_bad_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    args = benchmark_orders.parse_args(["--output", str(tmp_path / "file" / "orders.json")])
    with pytest.raises(UserError, match="--output: "):
        benchmark_orders.main(args)


def test_bad_flag_is_one_line() -> None:
    done = run_command("scripts/benchmark_orders.py", "--repeats", "0")
    assert done.returncode == 2
    assert (
        done.stderr == "error: --repeats: found '0', expected a whole number from 1 to 1000000000\n"
    )
