"""Files that an earlier version's commands wrote are read, and taken up, as that version did.

`tests/kept/make.sh` shows what wrote them. Only commands and public names are used here, so that
the code behind them may change. Tokens, orders and caches must be equal, fractions as nearly as the
kernels of other processors make them.
"""

from __future__ import annotations

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
from scripts.evidence import tables
from tests.commands import ROOT
from tests.integration.test_resume import logged
from tests.kept.results import results, tokens_of
from tests.kept.small import REPLACED
from tokenizers.vq_model import VQModel

CPU = "--num_workers 0 --device cpu".split()
SMALL = "--model lpd_tiny --img_size 32 --class_num 3 --vqgan_path vq.pt".split()
TRAINING = "--use_cached --group_sizes_list auto --epochs 3 --batch_size 4 --lr 1e-2 --log_every 1"
TRAINING = [*SMALL, *CPU, *TRAINING.split(), "--lr_schedule", "constant", "--warmup_epochs", "1"]
SCORING = "--feature_extractor digits --feature_extractor_weights digits.pth".split() + CPU
SAMPLING = "--pretrained_ckpt published.pth --num_images 6 --eval_bsz 4 --generation_steps 6"
SAMPLING = [*SMALL, *SAMPLING.split(), "--order", "lpd", "--lpd_order_file", "orders/orders.npy"]
SAMPLING += [*SCORING, "--fid_stats", "stats.npz"]
ENCODING = "--vqgan_path vq.pt --img_size 32 --batch_size 4 --data_path images".split() + CPU
STUDY = "--pretrained_ckpt published.pth --cached_path cache --device cpu --num_images 8".split()
ORDERS = "--img_size 32 --vqgan_stride 4 --generation_steps 6 --seed 3 --repulsion_threshold 2"
ORDERS = [*ORDERS.split(), "--num_runs", "24", "--max_workers", "1"]
METRICS = "samples/metrics.json"

Command = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the kept files, unpacked."""
    folder = tmp_path_factory.mktemp("copy") / "kept"
    shutil.copytree(ROOT / "tests" / "kept", folder)
    for packed in folder.glob("*.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    return folder


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """The kept networks' size; paths in flags and files are relative to the folder."""
    for table, value in REPLACED:
        monkeypatch.setitem(table, "lpd_tiny", value)
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process: `command(script, *flags)` gives its output and its log."""

    def run(script: str, *flags: object) -> tuple[str, str]:
        module = import_module(script.removesuffix(".py").replace("/", "."))
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        capsys.readouterr()
        module.main(sys.argv[1:])
        return tuple(capsys.readouterr())

    return run


@pytest.fixture
def kept_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images count as kept with the PyTorch that made them only."""
    made_with = read("samples/images.json")["torch"]
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)(made_with))


def read(path: str | Path) -> dict:
    return json.loads(Path(path).read_text())


def contents(folder: str | Path, pattern: str = "*") -> dict[str, bytes]:
    """The files of a folder, by name, without what says when and where."""
    own = ("commands.sh", "log.txt")
    files = (path for path in Path(folder).glob(pattern) if path.is_file())
    return {path.name: path.read_bytes() for path in sorted(files) if path.name not in own}


def assert_alike(new: object, kept: object, name: str = "", **tolerance: float) -> None:
    """Two JSON values are equal, fractions and numbers in texts approximately."""
    if isinstance(kept, dict):
        assert new.keys() == kept.keys(), name
        for key in kept:
            assert_alike(new[key], kept[key], f"{name}/{key}", **tolerance)
    elif isinstance(kept, list):
        assert len(new) == len(kept), name
        for place, pair in enumerate(zip(new, kept, strict=True)):
            assert_alike(*pair, f"{name}/{place}", **tolerance)
    elif isinstance(kept, str):
        (text, values), (kept_text, kept_values) = parts(new), parts(kept)
        assert text == kept_text, name
        assert values == pytest.approx(kept_values, **tolerance), name
    else:
        expected = pytest.approx(kept, **tolerance) if isinstance(kept, float) else kept
        assert new == expected, name


def parts(text: str) -> tuple[list[str], list[float]]:
    """What stands between the numbers of a text, and these."""
    pieces = re.split(r"(?<![\w.])(-?\d+(?:\.\d+)?(?:e-?\d+)?)(?![\w.])", text)
    return pieces[::2], list(map(float, pieces[1::2]))


def test_networks_and_seeds_give_the_kept_tokens_and_orders(folder: Path) -> None:
    """From a training checkpoint and from one of the published form."""
    assert results(folder) == read("results.json")


@pytest.mark.parametrize("cache", ["cache", "published_cache", "converted_cache"])
def test_training_goes_on_from_the_middle_of_an_epoch(
    command: Command, tmp_path: Path, cache: str
) -> None:
    run = shutil.copytree("training", tmp_path / "run")
    record = (run / "commands.sh").read_bytes()
    place = ["--cached_path", cache, "--output_dir", run, "--log_dir", run, "--resume", run]
    command("main_lpd.py", *TRAINING, *place)
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
    assert ended["model"].keys() == kept.keys()
    for name, value in kept.items():
        torch.testing.assert_close(ended["model"][name], value, rtol=0, atol=1e-3, msg=name)


def test_weights_go_to_the_form_of_the_hub_and_back(command: Command, tmp_path: Path) -> None:
    new, back = tmp_path / "new", tmp_path / "back.pth"
    command("scripts/convert_checkpoint.py", "published.pth", new, "--results", METRICS)
    assert contents(new).keys() == contents("converted").keys()
    assert read(new / "config.json") == read("converted/config.json")
    assert (new / "README.md").read_text() == Path("converted/README.md").read_text()
    kept = load_file("converted/model.safetensors")
    assert same_tensors(load_file(new / "model.safetensors"), kept)
    command("scripts/convert_checkpoint.py", "converted", back)
    assert same_tensors(torch.load(back)["model"], kept)
    model = LPD.from_pretrained("converted")
    assert same_tensors(dict(model.state_dict()), kept)
    assert tokens_of(model) == read("results.json")["tokens"]


def same_tensors(new: dict[str, torch.Tensor], kept: dict[str, torch.Tensor]) -> bool:
    assert new.keys() == kept.keys()
    return all(torch.equal(new[name], value) for name, value in kept.items())


def test_the_tokenizer_encodes_as_it_did(command: Command, tmp_path: Path) -> None:
    tokens = np.load("cache/cache-tokens.npy")
    images = np.stack([Image.open(path) for path in sorted(Path("images").glob("*/*.png"))])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    command("scripts/convert_checkpoint.py", "vq.pt", tmp_path / "vq")
    for form in ("vq.pt", tmp_path / "vq"):
        tokenizer = VQModel.from_pretrained(form)
        for way, flipped in enumerate((pixels, pixels.flip(-1))):
            assert np.array_equal(tokenizer.encode_indices(flipped), tokens[:, way])


def test_caches_are_made_taken_up_and_converted(command: Command, tmp_path: Path) -> None:
    new, taken_up, converted = (tmp_path / name for name in ("new", "taken_up", "converted"))
    command("main_cache.py", *ENCODING, "--cached_path", new)
    shutil.copytree("unfinished", taken_up)
    _, log = command("main_cache.py", *ENCODING, "--cached_path", taken_up)
    assert "1 of 2 shards are there already" in log
    published = ["--published_path", "published_cache", "--vqgan_path", "vq.pt"]
    command("scripts/convert_cache.py", *published, "--cached_path", converted)
    assert contents(new) == contents(taken_up) == contents("cache")
    assert contents(converted) == contents("converted_cache")
    assert contents(new, "*.npy") == contents(converted, "*.npy")


def test_order_files_are_made_and_read_in_both_forms(command: Command, tmp_path: Path) -> None:
    files = ["orders/orders.json", "orders/orders.npy"]
    for file in files:
        new = tmp_path / Path(file).name
        command("orders/run_lpd_order.py", *ORDERS, "--output_file", new)
        assert new.read_bytes() == Path(file).read_bytes()
    # Orders made on the spot, of the same seed, are theirs.
    compared = ["--orders", *files, "lpd:2", "--steps", 6, "--seed", 3]
    command("scripts/evaluate_orders.py", *STUDY, *compared, "--output", tmp_path / "study.json")
    found = [entry["nll_by_image"] for entry in read(tmp_path / "study.json")["results"]]
    assert len(found) == 3 and len(set(found)) == 1


def test_statistics_and_scores(command: Command, tmp_path: Path) -> None:
    command(
        *("scripts/compute_stats.py", "--images", "images", "--img_size", 32, "--features"),
        *("--out", tmp_path / "new.npz", *SCORING),
    )
    with np.load(tmp_path / "new.npz") as new, np.load("stats.npz") as kept:
        assert sorted(new) == sorted(kept)
        for name in kept:
            assert new[name].dtype == kept[name].dtype
            np.testing.assert_allclose(new[name], kept[name], rtol=1e-4, atol=1e-4)
    for images in ("images", "samples/images"):
        scoring = (*SCORING, "--fid_stats", "stats.npz", "--output_dir", tmp_path)
        command("main_lpd.py", "--images", images, *scoring)
        scores = read(tmp_path / "images-metrics.json")
        assert_alike(scores, read(f"{images}-metrics.json"), rel=2e-3, abs=1e-3)


@pytest.mark.usefixtures("kept_torch")
def test_images_of_an_evaluation_are_kept(command: Command, tmp_path: Path) -> None:
    line = ["main_lpd.py", "--evaluate", *SAMPLING, "--cfg", 3, "--metrics", "fid,is,prc"]
    again, new = shutil.copytree("samples", tmp_path / "again"), tmp_path / "new"
    _, log = command(*line, "--output_dir", again, "--log_dir", again)
    assert "6 of 6 images are there already" in log
    assert contents(again / "images") == contents("samples/images")
    assert (again / "images.json").read_bytes() == Path("samples/images.json").read_bytes()
    assert_alike(read(again / "metrics.json"), read(METRICS), rel=2e-3, abs=1e-3)
    command(*line, "--output_dir", new, "--log_dir", new)
    assert read(new / "images.json") == read("samples/images.json")
    for kept in sorted(Path("samples/images").iterdir()):
        with Image.open(kept) as was, Image.open(new / "images" / kept.name) as now:
            assert now.info == was.info
            pixels = [np.asarray(image, dtype=np.int64) for image in (was, now)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1, kept.name


@pytest.mark.usefixtures("kept_torch")
def test_a_search_takes_up_its_results(command: Command) -> None:
    kept = contents("search", "*.json")
    printed, log = command(
        *("scripts/search_cfg.py", "--cfgs", 1, 3, *SAMPLING, "--output_dir", "search")
    )
    assert log.count("results are there already") == 2
    assert contents("search", "*.json") == kept
    assert printed == Path("search/printed.txt").read_text()


def test_studies_of_orders(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, line in {
        "study": "--orders lpd:2 random raster --steps 64 6",
        "order_search": "--search --steps 6 --repulsions 0 2 --proximities 1 3 --shapes rule 2",
    }.items():
        new = tmp_path / f"{name}.json"
        command("scripts/evaluate_orders.py", *STUDY, *line.split(), "--output", new)
        about = {"command": "", "code": "", "versions": ""}
        kept = read(f"{name}.json")
        # Texts are rounded to three decimals.
        assert_alike(read(new) | about, kept | about, rel=1e-4, abs=2e-3)
    for table, name in (("nll", "study"), ("prices", "study"), ("search", "order_search")):
        tables.main([table, f"{name}.json"])
        assert capsys.readouterr().out == Path("tables", f"{table}.md").read_text()
