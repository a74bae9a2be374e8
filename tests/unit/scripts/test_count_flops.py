import json
from pathlib import Path

import pytest

from scripts import count_flops
from util.errors import UserError

TINY = ["lpd_tiny", "--img_size", "64", "--vqgan_stride", "8", "--vqgan_vocab_size", "64"]
TINY += ["--class_num", "5", "--generation_steps", "6", "--batch_size", "4"]


def test_table_and_file_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count_flops.main([*TINY, "--output", str(tmp_path / "costs.json")])
    printed = capsys.readouterr().out
    assert printed.startswith("lpd_tiny, 64 px, bf16, batches of 4: 2.7")
    result = json.loads((tmp_path / "costs.json").read_text())
    sampling, sparse, dense = result["rows"]
    assert 0 < sampling["operations"] < sparse["operations"] < dense["operations"]
    names = ("sampling, 6 steps, cfg 4.8", "training, sparse masks", "training, dense masks")
    for row, name in zip(result["rows"], names, strict=True):
        assert row["work"] == name and f"{name} | {row['operations'] / 1e9:5,.1f} |" in printed
    assert sampling["bytes"] == pytest.approx(6 * 2 * result["parameters"] / 4, rel=0.1)
    count_flops.main(["lpd_l"])  # with the published tokenizer
    printed = capsys.readouterr().out
    assert all(x in printed for x in ("337.157 M parameters", "VQ encoder", "VQ decoder"))


def test_bad_input() -> None:
    for flag, value in (("--generation_steps", "300"), ("--img_size", "100")):
        with pytest.raises(UserError, match=f"^{flag}: .*{value}"):
            count_flops.main(["lpd_l", flag, value])
