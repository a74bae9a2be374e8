"""Published names in the place of files, through the commands."""

import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import main_cache
import main_lpd
from hub.published import download, pinned, resolve
from orders.group_sizes import group_sizes
from orders.order_file import read_orders
from scripts import evaluate_orders, visualize
from tests.commands import run_command, succeed
from tests.hub.worlds import STEPS20, publish


def flags(output: Path) -> list[str]:
    return [
        *("--evaluate", "--model", "lpd_tiny", "--pretrained_ckpt", "lpd_l_256"),
        *("--vqgan_path", "llamagen", "--order", "lpd", "--lpd_order_file", STEPS20),
        *("--generation_steps", "20", "--cfg", "2", "--num_images", "3", "--class_num", "3"),
        *("--feature_extractor", "none", "--device", "cpu"),
        *("--output_dir", str(output), "--log_dir", str(output)),
    ]


def test_an_evaluation_of_published_names(hub, inside, tmp_path):
    publish(hub, classes=3)
    main_lpd.main(flags(tmp_path))
    assert len(list((tmp_path / "images").iterdir())) == 3
    commit = hub.head("mit-han-lab/lpd_l_256")
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert results["checkpoint"] == f"lpd_l_256@{commit}"
    command = (tmp_path / "commands.sh").read_text()
    assert f"--pretrained_ckpt lpd_l_256@{commit}" in command
    assert "--vqgan_path llamagen@" in command and f"--lpd_order_file {STEPS20}@" in command


def test_a_study_of_orders_of_published_names(hub, inside, tmp_path):
    publish(hub, classes=3)
    cache, output = tmp_path / "cache", tmp_path / "nll.json"
    for name in ("a", "b", "c"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.effect_noise((256, 256), 64).save(tmp_path / "images" / name / "one.png")
    caching = ["--data_path", str(tmp_path / "images"), "--cached_path", str(cache)]
    main_cache.main([*caching, "--vqgan_path", "llamagen", "--device", "cpu", "--num_workers", "0"])
    study = ["--pretrained_ckpt", "lpd_l_256", "--cached_path", str(cache), "--device", "cpu"]
    evaluate_orders.main([*study, "--orders", STEPS20, "--steps", "20", "--output", str(output)])
    found = json.loads(output.read_text())
    commit = hub.head("mit-han-lab/lpd_l_256")
    assert found["checkpoint"] == f"lpd_l_256@{commit}"
    [result] = found["results"]
    assert result["order"] == STEPS20 and result["nll"] > 0
    assert f"--pretrained_ckpt lpd_l_256@{commit}" in (tmp_path / "commands.sh").read_text()


def test_a_file_comes_before_a_name_and_what_was_used_can_be_named_elsewhere(
    hub, inside, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("lpd_l_256").write_bytes(b"mine")
    assert resolve("lpd_l_256", "weights") == "lpd_l_256"
    assert resolve("lpd_l_256.pth", "weights") == "lpd_l_256.pth"
    publish(hub, classes=3)
    commit = hub.head("mit-han-lab/lpd_orders")
    path = download(STEPS20)
    assert pinned(path) == f"{STEPS20}@{commit}"
    assert resolve(pinned(path), "orders") == str(path)
    assert pinned("orders/mine.npy") == "orders/mine.npy"


def test_a_published_order_file_says_its_grid_and_steps(hub, inside, tmp_path, monkeypatch):
    publish(hub, classes=3)
    monkeypatch.setattr(visualize, "draw_orders", draw := Mock())
    flags = ["order", "--lpd_order_file", STEPS20, "--image_id", "3", "--output_dir", str(tmp_path)]
    visualize.main(flags)
    (lpd, random, raster), sizes, _ = draw.call_args.args
    published = read_orders(download(STEPS20))
    assert sizes == group_sizes(256, 20)
    assert np.array_equal(lpd.order, published[3]) and np.array_equal(lpd.orders, published)
    assert random.orders.shape == published.shape  # means over as many as the file holds
    assert np.array_equal(raster.order, np.arange(256))


@pytest.mark.slow
def test_workers_download_once_and_complain_once(hub, client, tmp_path):
    publish(hub, classes=3)
    arguments = ["main_lpd.py", *flags(tmp_path)]
    succeed(*arguments, processes=3, **client.variables())
    assert len(list((tmp_path / "images").glob("*.png"))) == 3
    assert len(hub.downloads) == 3
    hub.repositories["mit-han-lab/lpd_l_256"].private = True
    arguments += ["--pretrained_ckpt", "lpd_l_256@v2"]
    result = run_command(*arguments, processes=3, **client.variables())
    assert result.returncode == 1
    assert result.stderr.count("error: --pretrained_ckpt: lpd_l_256@v2: mit-han-lab/lpd_l") == 1
    assert result.stderr.count("exitcode  : 2") + result.stderr.count("exitcode: 2") >= 1
    assert not torch.distributed.is_initialized()
