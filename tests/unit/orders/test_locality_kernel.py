"""The compiled search: its arithmetic, and where its compiled code is kept."""

import math
import os
import shutil
from itertools import product
from pathlib import Path
from subprocess import PIPE

import pytest

from orders import locality_kernel as kernel
from orders.locality import MAX_GRID_SIZE
from tests.commands import ROOT, start_command

# One order, and the log of making it. A copy of the checkout has no __pycache__ to write to.
MAKE = """
import logging
logging.basicConfig(level=logging.INFO)
from orders.locality import locality_aware_orders
print(locality_aware_orders(1, [1, 3, 12], 4).tolist())
"""


def test_scores_are_in_the_order_of_the_exact_ones_and_keys_have_room() -> None:
    around = list(product(range(5), range(5)))
    by_exact = sorted(around, key=lambda counts: counts[0] + counts[1] / math.sqrt(2))
    whole = [kernel.EDGE * edges + kernel.CORNER * corners for edges, corners in by_exact]
    assert whole == sorted(set(whole))
    assert MAX_GRID_SIZE**2 <= kernel._POSITION_MASK + 1
    highest = kernel._LOW_SCORE + whole[-1]
    assert highest < kernel._ABOVE_ALL + kernel._LOW_SCORE
    assert highest << kernel._RANDOM_BITS + kernel._POSITION_BITS < 2**63
    assert kernel._DECODED + whole[-1] < 0


@pytest.mark.parametrize(
    ("threshold", "lowest"), [(0, 0), (0.5, 7), (1, 10), (math.sqrt(2), 14), (1.5, 17), (50, 100)]
)
def test_lowest_near_score(threshold: float, lowest: int) -> None:
    assert kernel.lowest_near_score(threshold) == lowest


def made(checkout: Path, user_cache: str, processes: int = 1) -> list[list[str]]:
    """The order made, and the log, of processes that start at once."""
    options = {"cwd": checkout, "variables": {"XDG_CACHE_HOME": user_cache}, "cold": True}
    pipes = {"stdout": PIPE, "stderr": PIPE}
    running = [start_command("-c", MAKE, **options, **pipes) for _ in range(processes)]
    found = [process.communicate(timeout=120) for process in running]
    assert not any(process.returncode for process in running), found
    return found


def test_what_is_compiled_is_kept_and_shared_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    for folder in ("orders", "util"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=lambda *_: ["__pycache__"])
    (tmp_path / "orders" / "__pycache__").touch()  # nothing can be written there
    cache = tmp_path / "cache"
    (first, _), (second, _) = made(tmp_path, str(cache), processes=2)
    ((output, log),) = made(tmp_path, str(cache))
    assert log == ""
    assert first == second == output
    # A damaged file does no harm.
    for file in cache.rglob("*.nbi"):
        file.write_bytes(b"")
    for user_cache, problem in ((str(cache), "disk ("), (os.devnull, "disk (cannot cache")):
        ((output, log),) = made(tmp_path, user_cache)
        assert output == first
        assert f"no compiled code on the {problem}" in log and "NUMBA_CACHE_DIR" in log
        assert log.count("compiling the search") == 1
