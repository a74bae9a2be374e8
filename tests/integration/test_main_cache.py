"""main_cache.py end to end, plainly and under torchrun."""

import json
import logging
import re
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import engine_lpd
import main_cache
from dataset import write_cache
from dataset.image_folder import image_batches, list_images
from dataset.token_cache import open_cache
from tests.commands import ROOT, results_in, run_command, run_program, succeed
from tests.integration.tiny_world import tiny_tokenizer
from tokenizers.vq_model import VQModel, fingerprint, load_tokenizer, save_tokenizer
from util.errors import UserError
from util.folder_lock import folder_lock
from util.images import to_float
from util.signals import MARKER, leave_marker

NUM_IMAGES = 11
Main = Callable[[list[str]], None]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A random small tokenizer, and images of two classes."""
    save_tokenizer(tmp_path / "vq.pt", tiny_tokenizer())
    rng = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        file = tmp_path / "data" / ("cat" if i < 6 else "dog") / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 28, 3), dtype=np.uint8)).save(file)
    return tmp_path


def _flags(workspace: Path, *more: object) -> list[str]:
    """Flags of a run on the CPU; later ones replace earlier ones."""
    paths = ("--vqgan_path", workspace / "vq.pt", "--data_path", workspace / "data")
    sizes = ("--img_size", 16, "--batch_size", 3, "--num_workers", 0, "--device", "cpu")
    return [str(flag) for flag in (*paths, *sizes, *more)]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Main:
    """The command inside this process, which keeps pytest's logging."""
    monkeypatch.setattr("util.logs.setup", lambda: None)
    monkeypatch.delenv("RANK", raising=False)
    return main_cache.main


def _read_all(path: Path) -> np.ndarray:
    cache = open_cache(path)
    cache.verify()
    everything = np.arange(cache.num_images)
    ways = [cache.read(everything, np.full(len(everything), flip)) for flip in (False, True)]
    return np.stack(ways, axis=1)


def _encode_directly(workspace: Path) -> np.ndarray:
    """Tokens (n, 2, N) of the readable images, encoded in one batch each way."""
    tokenizer = load_tokenizer(workspace / "vq.pt")
    images = list_images(workspace / "data")
    (batch,) = image_batches(images, 16, [np.arange(NUM_IMAGES)], skip_bad=True)
    mirrored = torch.from_numpy(batch.images.numpy()[..., ::-1].copy())
    ways = [tokenizer.encode_indices(to_float(pixels)) for pixels in (batch.images, mirrored)]
    return torch.stack(ways, dim=1).numpy()


def test_cache_equals_direct_encoding(workspace: Path, main: Main) -> None:
    path = workspace / "cache"
    main(_flags(workspace, "--cached_path", path))
    expected = _encode_directly(workspace)
    assert len(expected) == NUM_IMAGES
    assert len(np.unique(expected)) > 5
    np.testing.assert_array_equal(_read_all(path), expected)
    cache = open_cache(path)
    assert cache.labels.tolist() == [0] * 6 + [1] * 5
    assert cache.classes == ("cat", "dog")
    assert cache.fingerprint == fingerprint(load_tokenizer(workspace / "vq.pt"))
    with pytest.raises(UserError, match="^--cached_path: .* already holds a finished token cache"):
        main(_flags(workspace, "--cached_path", path))


def test_two_processes_write_what_one_does_and_leave_out_bad_images(
    workspace: Path, main: Main, caplog: pytest.LogCaptureFixture
) -> None:
    (workspace / "data" / "dog" / "07.png").write_bytes(b"damaged")
    one, two = workspace / "one", workspace / "two"
    two.mkdir()
    (two / "shard-00009.npy").write_text("left over by a run that was killed")
    main(_flags(workspace, "--cached_path", one, "--skip_bad_images"))
    flags = _flags(workspace, "--cached_path", two, "--skip_bad_images")
    log = succeed("main_cache.py", *flags, processes=2).stderr
    for text in (caplog.text, log):
        assert text.count("07.png") == 1
        assert text.count("left out 1 of 11 images") == 1
    assert {file.name for file in results_in(two)} == {
        *("cache-labels.npy", "cache-tokens.npy", "index.json")
    }
    _assert_same_files(one, two)
    expected = _encode_directly(workspace)
    assert len(expected) == NUM_IMAGES - 1
    for path in (one, two):
        np.testing.assert_array_equal(_read_all(path), expected)
        assert open_cache(path).labels.tolist() == [0] * 6 + [1] * 4


def test_a_tar_gives_the_cache_of_its_folder(workspace: Path, main: Main) -> None:
    with tarfile.open(workspace / "data.tar", "w:") as tar:
        for folder in ("dog", "cat"):
            tar.add(workspace / "data" / folder, f"imagenet/train/{folder}")
    main(_flags(workspace, "--cached_path", workspace / "one"))
    more = ("--data_path", workspace / "data.tar", "--num_workers", 2)
    main(_flags(workspace, "--cached_path", workspace / "two", *more))
    _assert_same_files(workspace / "one", workspace / "two")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_another_precision_says_what_it_changes(
    workspace: Path, main: Main, caplog: pytest.LogCaptureFixture, precision: str
) -> None:
    path = workspace / "cache"
    with caplog.at_level(logging.INFO):
        main(_flags(workspace, "--cached_path", path, f"--{precision}", "--batch_size", 99))
    said = re.search(rf"{precision} changes (\S+) % of the first batch's indices", caplog.text)
    changed = (_read_all(path) != _encode_directly(workspace)).mean()
    assert float(said[1]) == pytest.approx(100 * changed, abs=1e-4)
    assert (changed > 0) == (precision == "bf16")  # a CPU has no TF32
    assert json.loads((path / "index.json").read_text())["precision"] == precision


def test_corrupt_image_is_one_line_and_leaves_nothing_torn(workspace: Path) -> None:
    path, bad = workspace / "cache", workspace / "data" / "dog" / "07.png"
    bad.write_bytes(bad.read_bytes()[:200])  # the second process has it
    result = run_command("main_cache.py", *_flags(workspace, "--cached_path", path), processes=2)
    assert result.returncode == 1  # torchrun's own; its workers' is 2
    assert result.stderr.count(f"error: {bad}: cannot be decoded") == 1
    assert result.stderr.count("exitcode  : 2") == 2
    assert list(path.glob("*.part")) == []
    assert [file.name for file in path.glob("*.npz")] == ["shard-00000.npz"]  # is whole
    with pytest.raises(UserError, match="holds tokens but no index.json"):
        open_cache(path)


def test_bad_flags_raise_before_anything_is_written(workspace: Path, main: Main) -> None:
    """More cases are in the table of bad input."""
    for flags, message in (
        ("", "--cached_path: not given"),
        ("--cached_path {}/c --vqgan_stride 16", "--vqgan_stride: found 16, expected 4"),
        ("--cached_path {}/c --vqgan_vocab_size 16384", "--vqgan_path: "),
        ("--cached_path {}/vq.pt", "--cached_path: "),
    ):
        with pytest.raises(UserError, match=f"^{message}"):
            main(_flags(workspace, *flags.format(workspace).split()))
    assert not (workspace / "c").exists()


def test_published_launch_line_parses() -> None:
    args = vars(main_cache.build_parser().parse_args([]))
    expected = dict(vqgan_path="tokenizers/vq_ds16_c2i.pt", data_path="./data/imagenet", seed=0)
    expected |= dict(img_size=256, batch_size=128, num_workers=10, pin_mem=True)
    assert args.items() >= {**expected, "device": "cuda", "cached_path": ""}.items()
    flags = ["--vqgan_vocab_size", "16384", "--vqgan_stride", "16", "--no_pin_mem"]
    assert not main_cache.build_parser().parse_args(flags).pin_mem


class Killed(BaseException):
    """Stands in for a signal that ends the process."""


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that are encoded; and shards small enough to be several."""
    monkeypatch.setattr("dataset.write_cache.MAX_SHARD_IMAGES", 3)
    sizes: list[int] = []
    encode = engine_lpd.encode_both_ways

    def count(tokenizer: VQModel, images: torch.Tensor, precision: str) -> torch.Tensor:
        sizes.append(len(images))
        return encode(tokenizer, images, precision)

    monkeypatch.setattr(engine_lpd, "encode_both_ways", count)
    return sizes


@pytest.fixture
def kill_after(main: Main, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, list[str]], None]:
    """Run, but not beyond so many shards: in the middle of writing the next."""
    write = write_cache.write_shard

    def run(shards: int, flags: list[str]) -> None:
        left = iter(range(shards))

        def write_or_die(path: Path, number: int, *arguments: object) -> write_cache.Shard:
            if next(left, None) is None:
                for name in (f".shard-{number:05d}.npz.part", ".commands.sh.part"):
                    (path / name).write_bytes(b"torn")
                raise Killed
            return write(path, number, *arguments)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(write_cache, "write_shard", write_or_die)
            main(flags)

    return run


KillAfter = Callable[[int, list[str]], None]


def _assert_same_files(one: Path, other: Path) -> None:
    names = [file.name for file in results_in(one)]
    assert names == [file.name for file in results_in(other)]
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_a_killed_run_is_taken_up_and_nothing_encoded_twice(
    workspace: Path, main: Main, encoded: list[int], kill_after: KillAfter
) -> None:
    path, whole = workspace / "cache", workspace / "whole"
    main(_flags(workspace, "--cached_path", whole))
    assert encoded == [3, 3, 3, 2]
    encoded.clear()
    flags = _flags(workspace, "--cached_path", path)
    kill_after(1, flags)
    kill_after(1, flags)
    assert encoded == [3, 3, 3, 3]  # two of them died with their runs
    damaged = path / "shard-00000.npz"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    encoded.clear()
    main(flags)
    assert encoded == [3, 3, 2]  # the damaged one and the two that were missing
    _assert_same_files(path, whole)


def test_two_processes_take_up_what_one_has_left(
    workspace: Path, main: Main, encoded: list[int], kill_after: KillAfter
) -> None:
    path, whole = workspace / "cache", workspace / "whole"
    main(_flags(workspace, "--cached_path", whole))
    flags = _flags(workspace, "--cached_path", path)
    kill_after(2, flags)
    log = succeed("main_cache.py", *flags, processes=2).stderr
    assert "2 of 4 shards are there already" in log
    assert "encoded 5 images" in log
    _assert_same_files(path, whole)


STOPPED = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import main_cache
from util import errors
from dataset import write_cache
write_cache.MAX_SHARD_IMAGES = 3
write = write_cache.write_shard
def write_and_ask(*arguments):
    shard = write(*arguments)
    if os.environ["RANK"] == "1":
        while write_cache.count_shards(arguments[0]) < 2:
            time.sleep(0.01)
        os.kill(os.getppid(), signal.SIGUSR1)  # the launcher; rank 0 waits for this process
        time.sleep(60)
    return shard
write_cache.write_shard = write_and_ask
errors.run(main_cache.main)
"""


def test_a_signal_leaves_a_marker_and_the_finished_shards(workspace: Path, main: Main) -> None:
    path, marker, program = (workspace / name for name in ("cache", "marker", "program.py"))
    program.write_text(STOPPED.format(root=str(ROOT)))
    flags = _flags(workspace, "--cached_path", path)
    started = time.monotonic()
    result = run_program(
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("--signals-to-handle", "SIGTERM,SIGUSR1", program, *flags),
        INTERRUPTED_FILE=str(marker),
    )
    assert time.monotonic() - started < 60
    assert result.returncode != 0
    assert 'main_cache.py", line' not in result.stderr
    assert json.loads(marker.read_text()) == {"signal": "SIGUSR1", "shards": 2}
    main(flags)
    np.testing.assert_array_equal(_read_all(path), _encode_directly(workspace))


def test_shards_without_the_bad_images_are_not_taken_up_by_a_run_that_wants_all(
    workspace: Path, main: Main, encoded: list[int], kill_after: KillAfter
) -> None:
    bad = workspace / "data" / "cat" / "01.png"
    content = bad.read_bytes()
    flags = _flags(workspace, "--cached_path", workspace / "cache")
    bad.write_bytes(b"")
    kill_after(2, [*flags, "--skip_bad_images"])
    bad.write_bytes(content)
    encoded.clear()
    main(flags)
    assert encoded == [3, 3, 2]
    np.testing.assert_array_equal(_read_all(workspace / "cache"), _encode_directly(workspace))


def test_an_unfinished_cache_is_taken_up_with_the_same_settings_only(
    workspace: Path, main: Main, encoded: list[int], kill_after: KillAfter
) -> None:
    path = workspace / "cache"
    flags = _flags(workspace, "--cached_path", path)
    kill_after(3, flags)
    before = results_in(path)
    other = load_tokenizer(workspace / "vq.pt")
    torch.nn.init.normal_(other.quantize.embedding.weight)
    save_tokenizer(workspace / "other.pt", other)
    (workspace / "data").rename(workspace / "elsewhere")  # which is the same data set
    shutil.copytree(workspace / "elsewhere", workspace / "fewer_images")
    (workspace / "fewer_images" / "dog" / "07.png").unlink()
    flags += ["--data_path", str(workspace / "elsewhere")]
    for changed, *more in (
        ("image_size", "--img_size", "20"),
        ("precision", "--bf16"),
        ("images", "--data_path", str(workspace / "fewer_images")),
        ("fingerprint", "--vqgan_path", str(workspace / "other.pt")),
    ):
        with pytest.raises(UserError, match=f"^--cached_path: .* unfinished cache with {changed} "):
            main([*flags, *more])
        assert results_in(path) == before
    encoded.clear()
    main(flags)
    assert encoded == [2]


def test_a_variable_that_rounds_convolutions_is_warned_of(
    workspace: Path, main: Main, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number, (mode, warnings) in enumerate({"STRICT": 0, "BF16": 1}.items()):
        monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", mode)
        main(_flags(workspace, "--cached_path", workspace / f"cache{number}"))
        assert caplog.text.count(f"ONEDNN_DEFAULT_FPMATH_MODE={mode}: ") == warnings


def test_a_second_job_in_the_same_folder_is_refused(workspace: Path, main: Main) -> None:
    path = workspace / "cache"
    path.mkdir()
    leave_marker(path, signal.SIGTERM, shards=0)
    busy = pytest.raises(UserError, match="^--cached_path: .* is in use by another run")
    with folder_lock(path, "cache"), busy:
        main(_flags(workspace, "--cached_path", path))
    assert (path / MARKER).exists()
    main(_flags(workspace, "--cached_path", path))
    assert not (path / MARKER).exists()  # it goes with the next start
