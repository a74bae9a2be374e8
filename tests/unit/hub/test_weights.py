"""Checkpoints: nothing unsafe or damaged gets in, nothing half-written stays."""

import argparse
import copy
import pickle
import resource
import zipfile

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hub import weights
from hub.weights import atomic_save, load_weights, read_checkpoint
from tests.integration.bad_files import Canary
from util.errors import UserError


def refused(path, mmap=True):
    with pytest.raises(weights.DamagedCheckpoint, match=r"^--ckpt: .*x\.pt is not a readable che"):
        read_checkpoint(path, "--ckpt", mmap)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zip_format", [True, False])
def test_reads_both_formats_and_a_namespace_and_never_runs_code(tmp_path, monkeypatch, zip_format):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pt"
    content = {"model": {"w": torch.arange(3.0)}, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, path, _use_new_zipfile_serialization=zip_format)
    read = read_checkpoint(path, "--ckpt")
    assert torch.equal(read["model"]["w"], torch.arange(3.0))
    assert read["args"] == argparse.Namespace(lr=0.1)
    torch.save({"model": Canary()}, path, _use_new_zipfile_serialization=zip_format)
    refused(path)
    path.write_bytes(pickle.dumps(Canary()))
    refused(path)
    assert list(tmp_path.iterdir()) == [path]


def test_what_could_unpack_to_anything_is_refused(tmp_path):
    """A packed part is nothing torch.save writes, and neither is one that stands for several."""
    path, bad = tmp_path / "good.pt", tmp_path / "x.pt"
    torch.save({"model": {"w": torch.zeros(5000)}}, path)
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        with zipfile.ZipFile(path) as parts, zipfile.ZipFile(bad, "w", method) as to:
            for part in parts.infolist():
                to.writestr(part.filename, parts.read(part))
            (large,) = (part for part in to.infolist() if part.file_size == 20000)
            for number in range(9 if method == zipfile.ZIP_STORED else 0):
                other = copy.copy(large)
                other.filename = f"archive/data/{number + 1}"
                to.filelist.append(other)
                to.NameToInfo[other.filename] = other
        refused(bad)


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_file_cut_short_or_of_something_else(tmp_path, zip_format):
    path = tmp_path / "x.pt"
    torch.save({"model": {"w": torch.randn(500)}}, path, _use_new_zipfile_serialization=zip_format)
    data = path.read_bytes()
    for kept in (0.0, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(data[: int(kept * len(data))])
        refused(path)
    path.write_bytes(bytes(range(256)) * 20)
    refused(path)


@pytest.mark.parametrize("mmap", [False, True])
def test_a_flipped_bit_in_a_weight_is_found(tmp_path, mmap):
    path, weight = tmp_path / "x.pt", torch.randn(500)
    torch.save({"model": {"w": weight}}, path)
    intact = path.read_bytes()
    read_checkpoint(path, "--ckpt", mmap)
    start = intact.index(weight.numpy().tobytes())
    for place in (start, start + 1999):
        path.write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
        refused(path, mmap)


def test_a_save_that_fails_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path, limit = tmp_path / "x.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    atomic_save({"epoch": 1}, path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        atomic_save({"epoch": lambda: 2}, path)
    # Of a full disk torch says something else; a limit of file sizes stands in for one.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            atomic_save({"w": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert error.value.filename == str(path)
    assert read_checkpoint(path, "--ckpt") == {"epoch": 1} and list(tmp_path.iterdir()) == [path]


def test_tensors_that_share_memory_are_written_each_by_itself(tmp_path):
    whole = torch.randn(4, 3)
    state = {"first": whole, "same": whole, "part": whole[1:], "turned": whole.T}
    weights.write_safetensors(state, tmp_path / "x.safetensors")
    written = load_file(tmp_path / "x.safetensors")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], value) for name, value in state.items())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_are_cast_and_copied_and_a_meta_model_gets_memory(device):
    with torch.device(device):
        model = nn.Linear(2, 3)
    state = {"weight": torch.ones(3, 2, dtype=torch.bfloat16), "bias": torch.zeros(3)}
    load_weights(model, state, "x.pt")
    assert model.weight.dtype == torch.float32 and torch.equal(model.weight, torch.ones(3, 2))
    state["bias"] += 1
    assert torch.equal(model.bias, torch.zeros(3))


WEIGHT, BIAS = torch.ones(3, 2), torch.ones(3)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": WEIGHT, "bias": BIAS * torch.nan}, "weight bias holds NaN or infinity"),
        ({"weight": WEIGHT}, r"weight bias is missing, expected shape \(3,\)$"),
        ({"weight": WEIGHT.T, "bias": BIAS}, r"weight weight has shape \(2, 3\), expected \(3, 2"),
        ({"weight": "a", "bias": BIAS}, r"weight weight is a str, expected shape"),
        ({"weight": WEIGHT, "bias": BIAS.int()}, "weight bias is torch.IntTensor, expected plain"),
        (
            {"weight": WEIGHT, "bias": BIAS, "extra": BIAS, 5: 1},
            r"weight extra of shape \(3,\).*1 more",
        ),
    ],
)
def test_the_first_difference_is_named(state, message):
    model = nn.Linear(2, 3)
    before = model.weight.clone()
    with pytest.raises(UserError, match=r"^--ckpt: x\.pt: " + message):
        load_weights(model, state, "--ckpt: x.pt")
    assert torch.equal(model.weight, before)
