"""The check of a GPU, on a CPU: all parts, with a tiny network and without graphs."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from scripts import gpu_check, gpu_parts
from tests.commands import run_program

# What each part is worth nothing without, on any device.
FIGURES = {
    "device": {"device", "torch", "attention"},
    "latency": {"call_s", "generation_s", "vq_s", "images_per_s", "cold_start_s", "kernels_s"},
    "tokens": {"float32_equal_share", "bfloat16_equal_share", "vq_agreement"},
    "throughput": {"call_s", "vq_16_s", "images_per_s", "kernels"},
    "training": {"fast_s", "rate_share", "graphs", "recompiles", "kernels"},
    "variants": {"attention_default_s", "qkv_4_s", "fc2_floor_s", "vq_nchw_2_s"},
    "tests": {"ended"},
}


def check(output: Path, *flags: object, **variables: str) -> tuple[int, dict[str, Any], list[str]]:
    """Exit code, what each part left, and the table."""
    # As a shell starts it in the background.
    command = ["bash", "-c", "trap '' INT; exec bash scripts/gpu_check.sh \"$@\"", "-", "--quick"]
    command += ["--device", "cpu", "--output", output, *flags]
    result = run_program(*command, timeout=900, **variables)
    return result.returncode, json.loads(output.read_text())["parts"], result.stdout.splitlines()


def test_every_part_runs(tmp_path: Path) -> None:
    # More time than the GPU's, for a busy machine.
    code, parts, lines = check(tmp_path / "gpu.json", "--seconds", 1500)
    assert {name: part["failed"] for name, part in parts.items()} == dict.fromkeys(FIGURES)
    assert code == 0
    for name, part in parts.items():
        assert FIGURES[name] <= part["figures"].keys(), name
        assert all(x >= 0 for x in part["figures"].values() if isinstance(x, float))
    assert parts["tokens"]["figures"]["float32_equal_share"] == 1
    assert [line.split()[0] for line in lines if line[0] != " "] == list(FIGURES)
    much = {"failed": "word " * 99, "seconds": 1.0, "figures": {"figure": "word " * 999}}
    lines += len(parts) * gpu_check.table({"part": much})
    assert max(map(len, lines)) <= gpu_check.WIDTH and len(lines) <= 2 * 60
    logs = {f"gpu.json.{name}.log" for name in FIGURES}
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.json", *logs}


def test_a_part_that_takes_too_long_is_one_line_and_the_next_goes_on(tmp_path: Path) -> None:
    flags = ["--seconds", 1, "--parts", "tests", "device"]
    # A start that imports takes longer than the time given; a fork may be done within it.
    code, parts, lines = check(tmp_path / "gpu.json", *flags, PYTHON=sys.executable)
    assert code == 1
    assert list(parts) == ["device", "tests"]
    for part in parts.values():
        assert part["failed"].startswith("not done after ")
    assert [line.split(" (")[0] for line in lines if line[0] != " "] == ["device", "tests"]


def test_what_fails_in_a_part_leaves_its_other_figures(tmp_path: Path, monkeypatch) -> None:
    def part(check: gpu_parts.Check) -> None:
        with check.attempt("first"):
            raise RuntimeError("no kernel\nof this kind")
        check.keep(second=2)
        raise ValueError("third")

    monkeypatch.setitem(gpu_parts.PARTS, "device", part)
    about = dict(measure="device", device="cpu", quick=True, output=tmp_path / "part.json")
    assert gpu_parts.measure(Namespace(**about)) == 1
    assert json.loads((tmp_path / "part.json").read_text()) == {
        "figures": {"second": 2},
        "errors": ["first: RuntimeError: no kernel", "device: ValueError: third"],
    }


def test_failed_tests_are_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "test_a.py").write_text("def test_cuda_a():\n    assert 0\ndef test_cuda_b(): 0\n")
    monkeypatch.setattr(gpu_check, "TESTS", (str(tmp_path / "test_a.py"),))
    args = gpu_check.parse_args(["--quick", "--output", str(tmp_path / "a.json")])
    part = gpu_check.run_part("tests", 60, args)
    assert part["failed"].startswith("exit code 1; FAILED ") and "::test_cuda_a" in part["failed"]
    assert part["figures"]["ended"].startswith("1 failed, 1 passed in ")
