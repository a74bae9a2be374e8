import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main_lpd
from evaluation import samples
from evaluation.digits import DigitsClassifier
from evaluation.features import build_extractor, extract
from evaluation.metrics import Reference, Statistics, save_reference, score
from evaluation.networks import load_networks
from evaluation.samples import SampleFolder
from hub.weights import atomic_save
from models.decoding import SAMPLERS, generate
from models.lpd import LPD
from models.transformer import KVCache
from orders.group_sizes import group_sizes
from orders.locality import locality_aware_orders, random_orders
from orders.order_file import write_orders
from tests.commands import ROOT, run_command, succeed
from tests.integration.tiny_world import GRID
from tokenizers.vq_model import VQModel
from training.checkpoint import LAST, PREVIOUS
from training.flags import build_parser
from util import distributed
from util.device import HostCopy
from util.errors import UserError
from util.images import to_uint8
from util.signals import MARKER


def images(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in (folder / "images").glob("*.png")}


def stacked(folder: Path) -> np.ndarray:
    return np.stack([image for _, image in sorted(images(folder).items())])


def same(first: Path, second: Path) -> bool:
    one, other = images(first), images(second)
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def reference(world, tmp_path_factory):
    """Samples of one process with batches of four."""
    output = tmp_path_factory.mktemp("reference")
    main_lpd.main([*world.eval_flags(output), "--order", "lpd", "--cfg", "3", "--save_npz"])
    return output


def test_images_and_archive(reference):
    assert sorted(images(reference)) == [f"{image_id:05d}.png" for image_id in range(9)]
    with np.load(reference / "samples.npz", allow_pickle=False) as archive:
        stored = archive["arr_0"]
    assert stored.dtype == np.uint8
    assert np.array_equal(stored, stacked(reference))
    metrics = metrics_of(reference)
    assert metrics["num_images"] == 9 and metrics["steps"] == 5 and metrics["cfg"] == 3.0


@pytest.mark.parametrize("way", ["two processes", "one batch", "orders.json", "orders.npy"])
def test_the_same_samples_another_way(world, reference, tmp_path, way):
    flags = [*world.eval_flags(tmp_path), "--order", "lpd", "--cfg", "3"]
    if way == "two processes":
        succeed("main_lpd.py", *flags, "--eval_bsz", "2", processes=2)
    elif way == "one batch":
        main_lpd.main([*flags, "--eval_bsz", "9"])
    else:
        orders = locality_aware_orders(12, group_sizes(GRID.num_tokens, 5), GRID.side, seed=1)
        write_orders(tmp_path / way, orders)
        main_lpd.main([*flags, "--lpd_order_file", str(tmp_path / way)])
    assert same(tmp_path, reference)


def test_sampling_is_as_published_by_default():
    args = vars(build_parser().parse_args([]))
    published = dict(
        generation_steps=None, group_sizes="[1] * 256", order="random", num_images=50_000
    )
    published |= dict(lpd_order_file=None, cfg=1.0, cfg_schedule="linear", temperature=1.0, top_k=0)
    published |= dict(top_p=1.0, eval_bsz=64, seed=1, proximity_threshold=1.0, sampler="fast")
    assert {name: args[name] for name in published} == published


def test_images_are_what_the_flags_say(world, tmp_path):
    """The command against its parts, put together here by hand."""
    flags = [*world.eval_flags(tmp_path), "--cfg", "2.5", "--cfg_schedule", "constant"]
    flags += ["--temperature", "0.7", "--top_k", "9", "--top_p", "0.8", "--seed", "5"]
    main_lpd.main(flags)
    model, tokenizer = load_networks(world.checkpoint, world.tokenizer)
    labels, orders = np.repeat([0, 1, 2], 3), random_orders(9, GRID.num_tokens, seed=5)
    sampling = dict(cfg=2.5, cfg_schedule="constant", temperature=0.7, top_k=9, top_p=0.8)
    tokens = generate(model, labels, orders, group_sizes(GRID.num_tokens, 5), seed=5, **sampling)
    expected = to_uint8(tokenizer.decode_code(tokens)).numpy()
    assert np.array_equal(stacked(tmp_path), expected)


@pytest.mark.parametrize("able", [True, False])
def test_bf16_runs_the_network_in_bfloat16(world, tmp_path, monkeypatch, caplog, able):
    """But for a processor that has no such products and would take ten times as long."""
    monkeypatch.setattr(distributed, "has_bf16_products", lambda: able)
    seen = set()
    attend = KVCache.attend

    def spy(self, layer, qkv, *args, **kwargs):
        seen.add(qkv.dtype)
        return attend(self, layer, qkv, *args, **kwargs)

    monkeypatch.setattr(KVCache, "attend", spy)
    for sampler in SAMPLERS:
        for more, dtype in (([], torch.float32), (["--bf16"], torch.bfloat16)):
            seen.clear()
            caplog.clear()
            folder = tmp_path / f"{sampler}{len(more)}"
            main_lpd.main([*world.eval_flags(folder), "--sampler", sampler, *more])
            assert seen == {dtype if able else torch.float32}
            assert ("no bfloat16 products; float32" in caplog.text) == (bool(more) and not able)


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_the_checkpoint_before_a_damaged_one_is_evaluated(
    world, reference, tmp_path, damage, caplog
):
    content = bytearray(world.checkpoint.read_bytes())
    (tmp_path / PREVIOUS).write_bytes(content)
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        (tmp_path / LAST).write_bytes(content)
    flags = [*world.eval_flags(tmp_path / "out"), "--order", "lpd", "--cfg", "3"]
    at = flags.index("--pretrained_ckpt")
    main_lpd.main([*flags[:at], *flags[at + 2 :], "--resume", str(tmp_path)])
    warned = "the one before it takes its place" in caplog.text
    assert warned == (damage == "flipped")
    assert metrics_of(tmp_path / "out")["checkpoint"] == str(tmp_path / PREVIOUS)
    assert same(tmp_path / "out", reference)


@pytest.mark.parametrize(
    ("most", "expected"), [(3, "expected at most 3"), (0, "and neither does a single one")]
)
def test_too_large_a_batch_ends_in_one_line_that_says_what_fits(
    world, tmp_path, monkeypatch, most, expected
):
    generate, tried = samples.generate, []

    def generate_some(model, labels, *args, **options):
        tried.append(len(labels))
        if len(labels) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(model, labels, *args, **options)

    monkeypatch.setattr(samples, "generate", generate_some)
    message = f"--eval_bsz: 9 images at a time do not fit into the memory of cpu, {expected}$"
    with pytest.raises(UserError, match=message):
        main_lpd.main([*world.eval_flags(tmp_path), "--eval_bsz", "9"])
    assert len(tried) <= 1 + 4 and 0 not in tried  # bisection


@pytest.mark.parametrize("processes", [None, 2])
def test_scores_are_those_of_the_saved_images_by_id(world, scored, tmp_path, processes):
    file = tmp_path / "reference.npz"
    flags = [*world.eval_flags(tmp_path), *scored, "--fid_stats", str(file)]
    draws = np.random.default_rng(0).normal(size=(100, 64))
    statistics = Statistics(draws.mean(axis=0), np.cov(draws, rowvar=False))
    save_reference({"pool": statistics}, file)
    succeed("main_lpd.py", *flags, processes=processes)
    metrics, pixels = metrics_of(tmp_path), stacked(tmp_path)
    extractor = build_extractor("digits", scored[-1], torch.device("cpu"))
    features = extract(extractor, torch.from_numpy(pixels))
    expected = score(features, extractor.kind, Reference(pool=statistics))
    assert len(pixels) == 30
    assert expected.values["is"].spread > 1e-4  # the splits differ: the order of the images shows
    assert metrics["scores"] == expected.lines()
    assert metrics["scores"][0].startswith("Frechet distance-30 (digit features): ")
    assert metrics["reference"] == str(file)
    for key in ("frechet_distance_digits", "classifier_score_digits_mean", "num_images"):
        assert metrics[key] == pytest.approx(expected.json()[key], rel=1e-6)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {f"eval/{tag}" for tag in expected.tags()}
    assert "eval/frechet_distance_digits-30" in events.Tags()["scalars"]


def test_bad_features_fail_on_all_processes_in_one_line(world, scored, tmp_path):
    weights = tmp_path / "classifier.pth"
    state = DigitsClassifier().state_dict()
    atomic_save({"model": {name: value * torch.nan for name, value in state.items()}}, weights)
    flags = [*world.eval_flags(tmp_path), *scored, "--feature_extractor_weights", weights]
    result = run_command("main_lpd.py", *flags, processes=2)
    assert result.returncode == 1
    assert result.stderr.count("error: --feature_extractor: found NaN or infinite features") == 1
    assert 'main_lpd.py", line' not in result.stderr
    assert not (tmp_path / "metrics.json").exists()


def kill_after(batches: int, flags: list[str]) -> None:
    """Run until so many batches are on the disk."""
    # What a batch left behind is handled while the next one is made.
    starts = [samples._start_batch] * (batches + 1)

    def start_or_die(*arguments: object) -> HostCopy:
        if not starts:
            raise KeyboardInterrupt
        return starts.pop()(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(samples, "_start_batch", start_or_die)
        main_lpd.main(flags)


def test_a_killed_evaluation_keeps_what_is_whole_and_makes_the_rest(world, scored, tmp_path, made):
    whole, killed, shared = (tmp_path / name for name in ("whole", "killed", "shared"))
    main_lpd.main([*world.eval_flags(whole), *scored])
    assert made == list(range(30))
    kill_after(4, [*world.eval_flags(killed), *scored])
    folder = killed / "images"
    assert len(images(killed)) == 16
    for name, length in (("00003.png", 200), ("00005.png", 0), ("00006.png", -4)):
        # Without its last 4 bytes an image can still be decoded.
        (folder / name).write_bytes((folder / name).read_bytes()[:length])
    Image.new("RGB", (8, 8)).save(folder / "00007.png")
    (folder / ".00016.png.part").write_bytes(b"torn")
    shutil.copytree(killed, shared)
    made.clear()
    main_lpd.main([*world.eval_flags(killed), *scored, "--save_npz"])
    assert made == [3, 5, 6, 7, *range(16, 30)]
    assert len(list(folder.iterdir())) == 30
    with np.load(killed / "samples.npz", allow_pickle=False) as archive:
        assert len(archive["arr_0"]) == 30
    log = succeed("main_lpd.py", *world.eval_flags(shared), *scored, processes=2).stderr
    assert "12 of 30 images are there already" in log
    for other in (killed, shared):
        assert same(other, whole)
        found = metrics_of(other)
        for key, value in metrics_of(whole).items():
            expected = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            assert key == "scores" or found[key] == expected


def test_a_finished_evaluation_is_scored_again_without_the_model(
    world, scored, tmp_path, made, monkeypatch
):
    flags = [*world.eval_flags(tmp_path), *scored]
    main_lpd.main([*flags, "--metrics", "is"])
    first, pixels = metrics_of(tmp_path), stacked(tmp_path)
    assert "frechet_distance_digits" not in first and "precision_digits" not in first
    assert made == list(range(30))

    for owner, name in ((LPD, "forward"), (samples, "generate"), (SampleFolder, "write")):
        monkeypatch.setattr(owner, name, None)
    monkeypatch.setattr(VQModel, "decode_code", None)
    reference = ["--fid_stats", str(tmp_path / "images")]
    main_lpd.main([*flags, *reference, "--metrics", "fid,is,prc"])
    second = metrics_of(tmp_path)
    assert second["frechet_distance_digits"] == pytest.approx(0, abs=1e-4)  # with themselves
    assert second["precision_digits"] == second["recall_digits"] == 1
    for key in (name for name in first if name.startswith("classifier_score")):
        assert second[key] == pytest.approx(first[key], rel=1e-5)
    assert np.array_equal(stacked(tmp_path), pixels)


STOPPED = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import main_lpd
from util import errors
from evaluation.samples import SampleFolder
write = SampleFolder.write
def write_or_ask(self, image_id, image):
    if image_id == 8:
        while len(list(self.path.glob("[0-9]*.png"))) < 8:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(60)
    write(self, image_id, image)
SampleFolder.write = write_or_ask
errors.run(main_lpd.main)
"""


def test_a_signal_leaves_a_marker_and_the_finished_images(world, tmp_path, made):
    whole, stopped, program = (tmp_path / name for name in ("whole", "stopped", "program.py"))
    program.write_text(STOPPED.format(root=str(ROOT)))
    flags = world.eval_flags(stopped)
    result = run_command(program, *flags, timeout=60)
    assert result.returncode == 128 + signal.SIGUSR1, result.stderr
    assert json.loads((stopped / MARKER).read_text()) == {"signal": "SIGUSR1", "images": 8}
    main_lpd.main(flags)
    assert made == [8]
    assert not (stopped / MARKER).exists()
    main_lpd.main(world.eval_flags(whole))
    assert same(stopped, whole)


def test_an_archive_of_other_settings_goes(world, tmp_path, caplog):
    caplog.set_level("INFO")
    main_lpd.main([*world.eval_flags(tmp_path), "--save_npz"])
    main_lpd.main([*world.eval_flags(tmp_path), "--cfg", "3"])
    assert "9 images of other settings are deleted" in caplog.text
    assert not (tmp_path / "samples.npz").exists() and metrics_of(tmp_path)["cfg"] == 3.0


def test_images_of_other_settings_are_not_kept(world, tmp_path, made):
    flags, other = world.eval_flags(tmp_path), str(tmp_path / "other.pth")
    content = torch.load(world.checkpoint, weights_only=True)
    content["model"]["head.weight"][0, 0] += 1
    atomic_save(content, other)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.png").write_bytes(b"not ours")
    changes = ["--seed 3", "--cfg 2", "--generation_steps 4", "--order lpd", "--num_images 3"]
    file = tmp_path / "orders.npy"
    changes += [f"--pretrained_ckpt {other}", f"--order lpd --lpd_order_file {file}"]
    write_orders(file, random_orders(9, GRID.num_tokens, seed=2))
    for change in changes:
        kill_after(1, flags)
        made.clear()
        main_lpd.main([*flags, *change.split()])
        count = 3 if "--num_images" in change else 9
        assert made == list(range(count)), change
        assert (tmp_path / "images" / "holiday.png").exists()
        assert len(list((tmp_path / "images").iterdir())) == count + 1
    write_orders(file, random_orders(9, GRID.num_tokens, seed=3))  # others in the same file
    made.clear()
    main_lpd.main([*flags, *change.split()])
    assert made == list(range(9))
