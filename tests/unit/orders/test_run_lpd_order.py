"""The command that makes order files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from orders import run_lpd_order
from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders
from orders.order_file import read_orders
from tests.commands import results_in
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
SMALL = ["--img_size", "128", "--generation_steps", "12", "--num_runs", "3", "--max_workers", "1"]


def test_writes_what_the_library_makes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "orders.json"
    run_lpd_order.main(
        [*SMALL, "--repulsion_threshold", "2", "--seed", "5", "--output_file", str(path)]
    )
    expected = locality_aware_orders(3, group_sizes(64, 12), 8, 1.0, 2.0, seed=5)
    np.testing.assert_array_equal(read_orders(path, 64), expected)


def test_group_sizes_and_stride(tmp_path: Path) -> None:
    path = tmp_path / "orders.npy"
    flags = ["--img_size", "32", "--vqgan_stride", "8", "--group_sizes", "[1]*4 + [2]*6"]
    run_lpd_order.main([*flags, "--num_runs", "2", "--output_file", str(path)])
    expected = locality_aware_orders(2, [1] * 4 + [2] * 6, 4)
    np.testing.assert_array_equal(read_orders(path), expected)


def test_same_file_for_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lpd_order, "available_cores", lambda: 2)
    flags = ["--img_size", "128", "--generation_steps", "12", "--num_runs", "600"]
    contents = []
    for workers in ("1", "2"):
        path = tmp_path / f"{workers}.npy"
        run_lpd_order.main([*flags, "--max_workers", workers, "--output_file", str(path)])
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--generation_steps", "65"], "--generation_steps: found 65 steps, expected 2 to 64"),
        (["--generation_steps", "0"], "--generation_steps: found '0'"),
        (["--generation_steps", "six"], "--generation_steps: found 'six'"),
        (["--img_size", "130"], "image size 130 is not a multiple"),
        (["--img_size", "x"], "--img_size: found 'x'"),
        (["--img_size", "2049", "--vqgan_stride", "1"], "--vqgan_stride: found 2049 tokens a side"),
        (["--num_runs", "0"], "--num_runs: found '0'"),
        (["--max_workers", "0"], "--max_workers: found '0'"),
        (["--proximity_threshold", "-1"], "--proximity_threshold: found '-1'"),
        (["--repulsion_threshold", "-0.5"], "--repulsion_threshold: found '-0.5'"),
        (["--repulsion_threshold", "nan"], "--repulsion_threshold: found 'nan'"),
        (["--output_file", "orders.txt"], "--output_file: found 'orders.txt'"),
        (["--output_file", "/dev/null/orders.npy"], "--output_file: /dev/null"),
        (["--no_such_flag"], "--no_such_flag"),
    ],
)
def test_bad_flags(tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_lpd_order.main([*SMALL, "--output_file", str(tmp_path / "orders.npy"), *flags])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "found neither"),
        (["--group_sizes", "[1] * 255"], "--group_sizes: found 255 .* expected a sum of 256"),
        (["--group_sizes", "[0] + [1] * 256"], "--group_sizes: group 0: found size 0"),
        (["--group_sizes", "[257, -1]"], "--group_sizes: group 1: found size -1"),
        (["--group_sizes", "exit()"], "--group_sizes: found 'exit"),
    ],
)
def test_bad_group_sizes(tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_lpd_order.main([*flags, "--output_file", str(tmp_path / "orders.npy")])


def test_bad_output(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--output_file: not given"):
        run_lpd_order.main(SMALL)
    (tmp_path / "orders.npy").mkdir()
    with pytest.raises(UserError, match="is a folder, expected a file"):
        run_lpd_order.main([*SMALL, "--output_file", str(tmp_path / "orders.npy")])


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "orders" / "run_lpd_order.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("flags", [[], ["--img_size", "x"], ["--generation_steps", "300"]])
def test_bad_input_is_one_line_and_exit_code_2(flags: list[str]) -> None:
    done = run(*flags)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: --")
    assert len(done.stderr.splitlines()) == 1


def test_debug_shows_the_traceback() -> None:
    done = run("--generation_steps", "300", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_starts_without_what_is_slow_to_import() -> None:
    check = "import sys, orders.run_lpd_order; sys.exit(bool({'torch', 'numba'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, timeout=60).returncode == 0


def test_the_published_four(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "orders/run_lpd_order.sh", str(tmp_path), "--num_runs", "3"],
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        check=True,
        capture_output=True,
        timeout=120,
    )
    grids = {
        "res256_steps20_repulsion2.json": 256,
        "res256_steps20_repulsion3.json": 256,
        "res256_steps32_repulsion2.json": 256,
        "res512_steps48_repulsion4.json": 1024,
    }
    assert {entry.name for entry in results_in(tmp_path)} == grids.keys()
    orders = {name: read_orders(tmp_path / name, grid) for name, grid in grids.items()}
    assert all(len(rows) == 3 for rows in orders.values())
    expected = locality_aware_orders(3, group_sizes(256, 20), 16, 1.0, 3.0)
    np.testing.assert_array_equal(orders["res256_steps20_repulsion3.json"], expected)
