"""main_cache.py end to end, plainly and under torchrun."""

import json
import logging
import re
import shutil
import signal
import tarfile
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import torch
from PIL import Image

import main_cache
from dataset import write_cache
from dataset.image_folder import image_batches, list_images
from dataset.token_cache import open_cache
from tests.commands import ROOT, results_in, run_command, start_command, succeed
from tests.integration.bad_files import Canary
from tests.integration.tiny_world import tiny_tokenizer
from tokenizers.vq_model import fingerprint, load_tokenizer, save_tokenizer
from util.errors import UserError
from util.folder_lock import folder_lock
from util.images import to_float
from util.signals import MARKER, leave_marker

NUM_IMAGES = 11


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random small tokenizer, and images of two classes."""
    save_tokenizer(tmp_path / "vq.pt", tiny_tokenizer())
    rng = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        file = tmp_path / "data" / ("cat" if i < 6 else "dog") / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 28, 3), dtype=np.uint8)).save(file)
    monkeypatch.delenv("RANK", raising=False)
    return tmp_path


def flags(cache: Path, *more: object) -> list[str]:
    """Flags of a run on the CPU in the cache's workspace; later ones replace earlier ones."""
    folder = cache.parent
    paths = ("--vqgan_path", folder / "vq.pt", "--data_path", folder / "data")
    sizes = ("--img_size", 16, "--batch_size", 3, "--num_workers", 0, "--device", "cpu")
    return [str(flag) for flag in (*paths, *sizes, "--cached_path", cache, *more)]


def make(cache: Path, *more: object) -> Path:
    main_cache.main(flags(cache, *more))
    return cache


def read_all(path: Path) -> np.ndarray:
    """Tokens (n, 2, N) of a cache."""
    cache = open_cache(path)
    cache.verify()
    both = [np.repeat(np.arange(cache.num_images), 2), np.tile([False, True], cache.num_images)]
    return cache.read(*both).reshape(-1, 2, cache.num_tokens)


def encode_directly(workspace: Path) -> np.ndarray:
    """The same of the readable images, encoded in one batch each way."""
    tokenizer = load_tokenizer(workspace / "vq.pt")
    images = list_images(workspace / "data")
    (batch,) = image_batches(images, 16, [np.arange(NUM_IMAGES)], skip_bad=True)
    ways = [tokenizer.encode_indices(to_float(x)) for x in (batch.images, batch.images.flip(-1))]
    return torch.stack(ways, dim=1).numpy()


def same_files(one: Path, other: Path) -> bool:
    contents, expected = ([x.read_bytes() for x in results_in(path)] for path in (one, other))
    return contents == expected


def test_cache_equals_direct_encoding_also_of_a_tar(workspace: Path) -> None:
    path = make(workspace / "cache")
    expected = encode_directly(workspace)
    assert len(expected) == NUM_IMAGES and len(np.unique(expected)) > 5
    np.testing.assert_array_equal(read_all(path), expected)
    cache = open_cache(path)
    assert (cache.classes, cache.labels.tolist()) == (("cat", "dog"), [0] * 6 + [1] * 5)
    assert cache.fingerprint == fingerprint(load_tokenizer(workspace / "vq.pt"))
    with tarfile.open(workspace / "data.tar", "w:") as tar:
        for folder in ("dog", "cat"):
            tar.add(workspace / "data" / folder, f"imagenet/train/{folder}")
    more = ("--data_path", workspace / "data.tar", "--num_workers", 2)
    assert same_files(path, make(workspace / "of_tar", *more))


def test_two_processes_stop_at_a_damaged_image_and_write_what_one_does_without_it(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two, bad = workspace / "two", workspace / "data" / "dog" / "07.png"
    bad.write_bytes(bad.read_bytes()[:200])  # the second process has it
    two.mkdir()
    (two / "shard-00009.npy").write_text("left over by a run that was killed")
    result = run_command("main_cache.py", *flags(two), processes=2)
    assert result.returncode == 1  # torchrun's own; its workers' is 2
    assert result.stderr.count(f"error: {bad}: cannot be decoded") == 1
    assert result.stderr.count("exitcode  : 2") == 2
    assert list(two.glob("*.part")) == []
    assert [file.name for file in two.glob("shard-*")] == ["shard-00000.npz"]  # is whole
    with pytest.raises(UserError, match="holds tokens but no index.json"):
        open_cache(two)
    log = succeed("main_cache.py", *flags(two, "--skip_bad_images"), processes=2).stderr
    one = make(workspace / "one", "--skip_bad_images")
    for text in (caplog.text, log):
        assert text.count("07.png") == text.count("left out 1 of 11 images") == 1
    names = ["cache-labels.npy", "cache-tokens.npy", "index.json"]
    assert [file.name for file in results_in(two)] == names
    assert same_files(one, two)
    expected = encode_directly(workspace)
    assert len(expected) == NUM_IMAGES - 1
    np.testing.assert_array_equal(read_all(one), expected)
    assert open_cache(one).labels.tolist() == [0] * 6 + [1] * 4


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_another_precision_says_what_it_changes(
    workspace: Path, caplog: pytest.LogCaptureFixture, precision: str
) -> None:
    with caplog.at_level(logging.INFO):
        path = make(workspace / "cache", f"--{precision}", "--batch_size", 99)
    said = re.search(rf"{precision} changes (\S+) % of the first batch's indices", caplog.text)
    changed = (read_all(path) != encode_directly(workspace)).mean()
    assert float(said[1]) == pytest.approx(100 * changed, abs=1e-4)
    assert (changed > 0) == (precision == "bf16")  # a CPU has no TF32
    assert json.loads((path / "index.json").read_text())["precision"] == precision


def test_flags_have_the_published_defaults() -> None:
    args = vars(main_cache.build_parser().parse_args([]))
    expected = dict(vqgan_path="tokenizers/vq_ds16_c2i.pt", data_path="./data/imagenet", seed=0)
    expected |= dict(img_size=256, batch_size=128, num_workers=10, pin_mem=True)
    assert args.items() >= {**expected, "device": "cuda", "cached_path": ""}.items()


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(write_cache, "MAX_SHARD_IMAGES", 3)
    caplog.set_level(logging.INFO)


def kill_after(shards: int, cache: Path, *more: object) -> Path:
    """`make`, but not beyond so many shards: in the middle of writing the next."""
    write, left = write_cache.write_shard, iter(range(shards))

    def write_or_die(path: Path, number: int, *arguments: object) -> int:
        if next(left, None) is None:
            for name in (f".shard-{number:05d}.npz.part", ".commands.sh.part"):
                (path / name).write_bytes(b"torn")
            raise KeyboardInterrupt
        return write(path, number, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(write_cache, "write_shard", write_or_die)
        make(cache, *more)
    return cache


@pytest.mark.usefixtures("small_shards")
def test_a_killed_run_is_taken_up_and_nothing_encoded_twice(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make(workspace / "whole")
    path = kill_after(1, kill_after(1, workspace / "cache"))
    damaged = path / "shard-00000.npz"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    make(path)
    # At last the damaged one and the two that were missing.
    assert re.findall(r"encoded (\d+) images", caplog.text) == ["11", "8"]
    assert same_files(path, whole)
    # Two processes go on from one; shards without their bad images are for a run without them.
    other, bad = workspace / "other", workspace / "data" / "cat" / "01.png"
    content = bad.read_bytes()
    bad.write_bytes(b"")
    kill_after(2, other, "--skip_bad_images")
    bad.write_bytes(content)
    log = succeed("main_cache.py", *flags(other), processes=2).stderr
    assert "1 of 4 shards are there already" in log and "encoded 8 images" in log
    assert same_files(other, whole)


STOPPED = """
import os, signal, time
import main_cache
from util import errors
from dataset import write_cache
write_cache.MAX_SHARD_IMAGES = 3
write = write_cache.write_shard
def write_and_ask(*arguments):
    count = write(*arguments)
    if os.environ["RANK"] == "1":
        while write_cache.count_shards(arguments[0]) < 2:
            time.sleep(0.01)
        os.kill(os.getppid(), signal.SIGUSR1)  # the launcher; rank 0 waits for this process
        time.sleep(60)
    return count
write_cache.write_shard = write_and_ask
errors.run(main_cache.main)
"""


def test_a_signal_leaves_a_marker_and_the_finished_shards(workspace: Path) -> None:
    path, marker, program = (workspace / name for name in ("cache", "marker", "program.py"))
    program.write_text(STOPPED)
    variables = {"INTERRUPTED_FILE": str(marker), "PYTHONPATH": str(ROOT)}
    launcher = {"processes": 2, "launcher": ("--signals-to-handle", "SIGTERM,SIGUSR1")}
    with start_command(program, *flags(path), variables=variables, **launcher, stderr=PIPE) as run:
        said = run.communicate(timeout=120)[1]
    assert run.returncode != 0 and 'main_cache.py", line' not in said
    assert json.loads(marker.read_text()) == {"signal": "SIGUSR1", "shards": 2}
    np.testing.assert_array_equal(read_all(make(path)), encode_directly(workspace))


@pytest.mark.usefixtures("small_shards")
def test_an_unfinished_cache_is_taken_up_with_the_same_settings_only(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = kill_after(3, workspace / "cache")
    before = results_in(path)
    other = load_tokenizer(workspace / "vq.pt")
    torch.nn.init.normal_(other.quantize.embedding.weight)
    save_tokenizer(workspace / "other.pt", other)
    same, fewer = workspace / "elsewhere", workspace / "fewer_images"
    (workspace / "data").rename(same)
    shutil.copytree(same, fewer)
    (fewer / "dog" / "07.png").unlink()
    for changed, *more in (
        ("image_size", "--img_size", "20"),
        ("precision", "--bf16"),
        ("images", "--data_path", fewer),
        ("fingerprint", "--vqgan_path", workspace / "other.pt"),
    ):
        with pytest.raises(UserError, match=f"^--cached_path: .* unfinished cache with {changed} "):
            make(path, "--data_path", same, *more)
        assert results_in(path) == before
    make(path, "--data_path", same)
    assert re.findall(r"encoded (\d+) images", caplog.text) == ["2"]


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("record", ["{}", '{"batches_per_shard": null}', "[]", None])
def test_shards_without_a_whole_record_or_numbers_are_made_anew(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, record: str | None
) -> None:
    monkeypatch.chdir(workspace)
    path, objects = kill_after(3, workspace / "cache"), np.array([Canary()])
    if record is None:
        np.savez(path / "shard-00001.npz", tokens=objects, labels=objects)
    else:
        (path / write_cache.RECORD_FILE).write_text(record)
    np.testing.assert_array_equal(read_all(make(path)), encode_directly(workspace))
    assert not (workspace / "canary").exists()


def test_a_variable_that_rounds_convolutions_is_warned_of(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for mode, warnings in {"STRICT": 0, "BF16": 1}.items():
        monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", mode)
        make(workspace / f"cache_{mode}")
        assert caplog.text.count(f"ONEDNN_DEFAULT_FPMATH_MODE={mode}: ") == warnings


def test_a_second_job_in_the_same_folder_is_refused(workspace: Path) -> None:
    path = workspace / "cache"
    path.mkdir()
    leave_marker(path, signal.SIGTERM, shards=0)
    busy = pytest.raises(UserError, match="^--cached_path: .* is in use by another run")
    with folder_lock(path, "cache"), busy:
        make(path)
    assert (path / MARKER).exists()
    make(path)
    assert not (path / MARKER).exists()  # it goes with the next start
