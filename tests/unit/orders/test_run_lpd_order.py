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
        (["--max_workers", "0"], "--max_workers: found '0'"),
        (["--proximity_threshold", "-1"], "--proximity_threshold: found '-1'"),
        (["--repulsion_threshold", "nan"], "--repulsion_threshold: found 'nan'"),
        (["--no_such_flag"], "--no_such_flag"),
    ],
)
def test_bad_flags(tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_lpd_order.main([*SMALL, "--output_file", str(tmp_path / "orders.npy"), *flags])
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_output_file(tmp_path: Path) -> None:
    (tmp_path / "orders.npy").mkdir()
    with pytest.raises(UserError, match="is a folder, expected a file"):
        run_lpd_order.main([*SMALL, "--output_file", str(tmp_path / "orders.npy")])


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
    settings = [(256, 20, 2), (256, 20, 3), (256, 32, 2), (512, 48, 4)]
    names = [f"res{size}_steps{steps}_repulsion{r}.json" for size, steps, r in settings]
    assert {entry.name for entry in results_in(tmp_path)} == set(names)
    for name, (size, steps, repulsion) in zip(names, settings, strict=True):
        side = size // 16
        expected = locality_aware_orders(3, group_sizes(side**2, steps), side, 1.0, repulsion)
        np.testing.assert_array_equal(read_orders(tmp_path / name, side**2), expected)
