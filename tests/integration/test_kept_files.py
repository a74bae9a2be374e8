"""Files that an earlier version's commands wrote are read, and taken up, as that version did.

`tests/kept/make.sh` shows what wrote them. Only commands and public names are used here, so that
the code behind them may change. Tokens, orders and caches must be equal, fractions as nearly as the
kernels of other processors make them.
"""

import json
import lzma
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from models.lpd import LPD
from tests.commands import ROOT
from tests.integration.test_resume import logged
from tests.kept.results import results, tokens_of
from tests.kept.small import REPLACED

CPU = "--num_workers 0 --device cpu"
SMALL = f"--model lpd_tiny --img_size 32 --class_num 3 --vqgan_path vq.pt {CPU}"
TRAINING = f"main_lpd.py {SMALL} --use_cached --group_sizes_list auto --epochs 3 --batch_size 4"
TRAINING += " --lr 1e-2 --log_every 1 --lr_schedule constant --warmup_epochs 1"
SCORING = f"--feature_extractor digits --feature_extractor_weights digits.pth {CPU}"
SAMPLING = f"{SMALL} {SCORING} --pretrained_ckpt published.pth --fid_stats stats.npz --order lpd"
SAMPLING += " --num_images 6 --eval_bsz 4 --generation_steps 6 --lpd_order_file orders/orders.npy"
ENCODING = f"main_cache.py --img_size 32 --batch_size 4 --data_path images {CPU}"
STUDY = "scripts/evaluate_orders.py --pretrained_ckpt published.pth --cached_path cache"
STUDY += " --device cpu --num_images 8"
ORDERS = "orders/run_lpd_order.py --img_size 32 --vqgan_stride 4 --generation_steps 6 --seed 3"
ORDERS += " --repulsion_threshold 2 --num_runs 24 --max_workers 1"

Command = Callable[[str], tuple[str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the kept files, unpacked."""
    folder = tmp_path_factory.mktemp("copy") / "kept"
    shutil.copytree(ROOT / "tests" / "kept", folder)
    for packed in folder.glob("*.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    return folder


@pytest.fixture(autouse=True)
def _as_then(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """The kept networks' size; paths in flags and files are relative to the folder."""
    for table, value in REPLACED:
        monkeypatch.setitem(table, "lpd_tiny", value)
    monkeypatch.chdir(folder)
    # Images count as kept with the PyTorch that made them only.
    made_with = type(torch.__version__)(read("samples/images.json")["torch"])
    monkeypatch.setattr(torch, "__version__", made_with)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys, caplog) -> Command:
    """Run a command line in this process, for its output and its log."""

    def run(line: str) -> tuple[str, str]:
        script, *flags = line.split()
        monkeypatch.setattr(sys, "argv", [script, *flags])
        caplog.clear()
        import_module(script.removesuffix(".py").replace("/", ".")).main(flags)
        return capsys.readouterr().out, caplog.text

    caplog.set_level("INFO")
    return run


def read(path: str | Path) -> dict:
    return json.loads(Path(path).read_text())


def contents(folder: str | Path, pattern: str = "*") -> dict[str, bytes]:
    """The files of a folder, by name, without what says when and where."""
    own = ("commands.sh", "log.txt")
    files = (path for path in Path(folder).glob(pattern) if path.is_file())
    return {path.name: path.read_bytes() for path in sorted(files) if path.name not in own}


def assert_alike(new: object, kept: object, **tolerance: float) -> None:
    """Two JSON values are equal, numbers (those in texts as well) approximately."""
    number = r"(?<![\w.])(-?\d+(?:\.\d+)?(?:e-?\d+)?)(?![\w.])"
    found, expected = (re.split(number, json.dumps(x, sort_keys=True)) for x in (new, kept))
    assert found[::2] == expected[::2]
    expected = list(map(float, expected[1::2]))
    assert list(map(float, found[1::2])) == pytest.approx(expected, **tolerance)


def test_networks_and_seeds_give_the_kept_tokens_and_orders(folder: Path) -> None:
    """From a training checkpoint and from one of the published form."""
    assert results(folder) == read("results.json")


@pytest.mark.parametrize("cache", ["cache", "published_cache", "converted_cache"])
def test_training_goes_on_from_the_middle_of_an_epoch(
    command: Command, tmp_path: Path, cache: str
) -> None:
    run = shutil.copytree("training", tmp_path / "run")
    record = (run / "commands.sh").read_bytes()
    place = f"--cached_path {cache} --output_dir {run} --log_dir {run} --resume {run}"
    command(f"{TRAINING} {place}")
    assert not (run / "interrupted.json").exists()
    assert (run / "commands.sh").read_bytes().startswith(record + b"# ")
    for name in ("train/loss", "train/lr", "train/grad_norm", "epoch/loss"):
        new, kept = (np.array(logged(log)[name]) for log in (run, Path("training")))
        np.testing.assert_allclose(new, kept, rtol=1e-4, err_msg=name)  # steps and values
    assert len(logged(run)["train/loss"]) == 18
    began, ended = (torch.load(at / "checkpoint-last.pth") for at in (Path("training"), run))
    assert (began["epoch"], began["step_in_epoch"]) == (0, 4)
    assert (ended["epoch"], ended["step_in_epoch"]) == (2, 0)
    for name in ("global_batch", "num_images", "tokenizer_fingerprint"):
        assert ended[name] == began[name], name
    told = {name for name, value in began["args"].items() if ended["args"].get(name, 0) != value}
    assert told <= {"cached_path", "output_dir", "log_dir", "resume", "save_steps"}
    kept = LPD.from_pretrained("published.pth").state_dict()
    for weights in (ended["model"], kept):
        for name, bias in weights.items():
            if name.endswith("qkv.bias"):  # of the keys: attention does not depend on it, ...
                bias.chunk(3)[1].zero_()  # ... so its gradient is rounding alone
    torch.testing.assert_close(dict(ended["model"]), dict(kept), rtol=0, atol=1e-3)


def test_weights_go_to_the_form_of_the_hub_and_back(command: Command, tmp_path: Path) -> None:
    new, back = tmp_path / "new", tmp_path / "back.pth"
    convert = "scripts/convert_checkpoint.py"
    command(f"{convert} published.pth {new} --results samples/metrics.json")
    command(f"{convert} converted {back}")
    assert contents(new).keys() == contents("converted").keys()
    assert read(new / "config.json") == read("converted/config.json")
    assert (new / "README.md").read_text() == Path("converted/README.md").read_text()
    kept, model = load_file("converted/model.safetensors"), LPD.from_pretrained("converted")
    written = load_file(new / "model.safetensors")
    for weights in (written, torch.load(back)["model"], model.state_dict()):
        torch.testing.assert_close(dict(weights), kept, rtol=0, atol=0)
    assert tokens_of(model) == read("results.json")["tokens"]


def test_caches_are_made_taken_up_and_converted(command: Command, tmp_path: Path) -> None:
    """The first by the tokenizer in the form of the Hub."""
    new, taken_up, converted = (tmp_path / name for name in ("new", "taken_up", "converted"))
    command(f"scripts/convert_checkpoint.py vq.pt {tmp_path}/vq")
    command(f"{ENCODING} --vqgan_path {tmp_path}/vq --cached_path {new}")
    shutil.copytree("unfinished", taken_up)
    _, log = command(f"{ENCODING} --vqgan_path vq.pt --cached_path {taken_up}")
    assert "1 of 2 shards are there already" in log
    published = "--published_path published_cache --vqgan_path vq.pt"
    command(f"scripts/convert_cache.py {published} --cached_path {converted}")
    assert contents(new) == contents(taken_up) == contents("cache")
    assert contents(converted) == contents("converted_cache")
    assert contents(new, "*.npy") == contents(converted, "*.npy")


def test_order_files_are_made_and_read_in_both_forms(command: Command, tmp_path: Path) -> None:
    files, study = ("orders/orders.json", "orders/orders.npy"), tmp_path / "study.json"
    for file in files:
        new = tmp_path / Path(file).name
        command(f"{ORDERS} --output_file {new}")
        assert new.read_bytes() == Path(file).read_bytes()
    # Orders made on the spot, of the same seed, are theirs.
    command(f"{STUDY} --orders {files[0]} {files[1]} lpd:2 --steps 6 --seed 3 --output {study}")
    found = [entry["nll_by_image"] for entry in read(study)["results"]]
    assert len(found) == 3 and len(set(found)) == 1


def test_statistics_and_scores(command: Command, tmp_path: Path) -> None:
    made = f"--features --out {tmp_path}/new.npz"
    command(f"scripts/compute_stats.py --images images --img_size 32 {made} {SCORING}")
    with np.load(tmp_path / "new.npz") as new, np.load("stats.npz") as kept:
        assert sorted(new) == sorted(kept)
        for name in kept:
            assert new[name].dtype == kept[name].dtype
            np.testing.assert_allclose(new[name], kept[name], rtol=1e-4, atol=1e-4)
    for images in ("images", "samples/images"):
        to = f"--fid_stats stats.npz --output_dir {tmp_path}"
        command(f"main_lpd.py --images {images} {SCORING} {to}")
        scores = read(tmp_path / "images-metrics.json")
        assert_alike(scores, read(f"{images}-metrics.json"), rel=2e-3, abs=1e-3)


def test_images_of_an_evaluation_are_kept(command: Command, tmp_path: Path) -> None:
    line = f"main_lpd.py --evaluate {SAMPLING} --cfg 3 --metrics fid,is,prc"
    again, new = shutil.copytree("samples", tmp_path / "again"), tmp_path / "new"
    _, log = command(f"{line} --output_dir {again} --log_dir {again}")
    assert "6 of 6 images are there already" in log
    assert contents(again / "images") == contents("samples/images")
    assert (again / "images.json").read_bytes() == Path("samples/images.json").read_bytes()
    scores = read(again / "metrics.json")
    assert_alike(scores, read("samples/metrics.json"), rel=2e-3, abs=1e-3)
    command(f"{line} --output_dir {new} --log_dir {new}")
    assert read(new / "images.json") == read("samples/images.json")
    for kept in sorted(Path("samples/images").iterdir()):
        with Image.open(kept) as was, Image.open(new / "images" / kept.name) as now:
            assert now.info == was.info
            pixels = [np.asarray(image, dtype=np.int64) for image in (was, now)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1, kept.name


def test_a_search_takes_up_its_results(command: Command) -> None:
    kept = contents("search", "*.json")
    printed, log = command(f"scripts/search_cfg.py --cfgs 1 3 {SAMPLING} --output_dir search")
    assert log.count("results are there already") == 2
    assert contents("search", "*.json") == kept
    assert printed == Path("search/printed.txt").read_text()


def test_studies_of_orders(command: Command, tmp_path: Path) -> None:
    searched = "--search --steps 6 --repulsions 0 2 --proximities 1 3 --shapes rule 2"
    orders = "--orders lpd:2 random raster --steps 64 6"
    for name, line in {"study": orders, "order_search": searched}.items():
        command(f"{STUDY} {line} --output {tmp_path / name}.json")
        about = {"command": "", "code": "", "versions": ""}
        new, kept = (read(f"{place / name}.json") | about for place in (tmp_path, Path()))
        assert_alike(new, kept, rel=1e-4, abs=2e-3)  # texts are rounded to three decimals
    for table, name in (("nll", "study"), ("prices", "study"), ("search", "order_search")):
        printed, _ = command(f"scripts/evidence/tables.py {table} {name}.json")
        assert printed == Path("tables", f"{table}.md").read_text()
