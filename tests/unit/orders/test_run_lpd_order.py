"""The command that makes order files."""

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
from tests.commands import ROOT, results_in, run_program
from util.errors import UserError


def test_writes_what_the_library_makes_whatever_the_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lpd_order, "available_cores", lambda: 2)
    flags = "--img_size 32 --vqgan_stride 8 --group_sizes [1]*4+[2]*6 --seed 5 --num_runs 600"
    for workers in ("1", "2"):
        path = tmp_path / workers / "orders.npy"
        flags_of_output = ["--max_workers", workers, "--output_file", str(path)]
        run_lpd_order.main([*flags.split(), *flags_of_output])
        expected = locality_aware_orders(600, [1] * 4 + [2] * 6, 4, seed=5)
        np.testing.assert_array_equal(read_orders(path), expected)


def test_seeds_have_63_bits() -> None:
    parse = run_lpd_order.build_parser().parse_args
    for seed in (-(2**63), 2**63 - 1):
        assert parse(["--seed", str(seed)]).seed == seed
    for seed in (-(2**63) - 1, 2**63):
        with pytest.raises(UserError, match=f"^--seed: found '{seed}', expected .* 63 bits"):
            parse(["--seed", str(seed)])


def test_starts_without_what_is_slow_to_import() -> None:
    check = "import sys, orders.run_lpd_order; sys.exit(bool({'torch', 'numba'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, timeout=60).returncode == 0


def test_the_published_four(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = run_program("bash", "orders/run_lpd_order.sh", tmp_path, "--num_runs", 3, PATH=path)
    assert done.returncode == 0, done.stderr
    settings = [(256, 20, 2), (256, 20, 3), (256, 32, 2), (512, 48, 4)]
    names = [f"res{size}_steps{steps}_repulsion{r}.json" for size, steps, r in settings]
    assert {entry.name for entry in results_in(tmp_path)} == set(names)
    for name, (size, steps, repulsion) in zip(names, settings, strict=True):
        side = size // 16
        expected = locality_aware_orders(3, group_sizes(side**2, steps), side, 1.0, repulsion)
        np.testing.assert_array_equal(read_orders(tmp_path / name, side**2), expected)
