"""The files of the bad-input cases: good ones that all of them find, and what spoils one."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataset.write_cache import RECORD_FILE, write_shard
from evaluation.digits import DigitsClassifier
from hub.weights import atomic_save
from models.lpd import lpd_tiny
from orders.order_file import write_orders
from tests.fuzzing import claiming
from tests.integration.tiny_world import CLASSES, GRID, TinyWorld, tiny_tokenizer
from tokenizers.vq_model import VQModel, save_tokenizer
from util import folder_lock

# A folder of its own for each case, which it may spoil.
Spoil = Callable[[Path], None]


def build_good_files(world: TinyWorld, folder: Path) -> Path:
    """Everything that the commands' lines name without a case: each works."""
    folder.mkdir()
    shutil.copy(world.tokenizer, folder / "vq.pt")
    shutil.copy(world.checkpoint, folder / "lpd.pth")
    shutil.copytree(world.cache, folder / "cache")
    torch.manual_seed(2)
    larger = lpd_tiny(img_size=32, vqgan_stride=4, vqgan_vocab_size=32, class_num=CLASSES)
    atomic_save({"model": larger.state_dict()}, folder / "lpd32.pth")
    atomic_save({"model": DigitsClassifier().state_dict()}, folder / "digits.pth")
    draws = np.random.default_rng(0)
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        image = folder / "data" / name
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(image)
        tokens = folder / "published" / name.replace("png", "npz")
        tokens.parent.mkdir(parents=True, exist_ok=True)
        write_published(tokens, draws.integers(GRID.vocab_size, size=GRID.num_tokens))
    pixels = draws.integers(256, size=(12, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "samples.npz", arr_0=pixels)
    (folder / "empty").mkdir()
    (folder / "file").touch()
    return folder


def write_published(path: Path, tokens: np.ndarray) -> None:
    np.savez(path, indices=tokens, indices_flip=tokens)


def writing(name: str, content: bytes | str) -> Spoil:
    """Puts a file there."""
    data = content.encode() if isinstance(content, str) else content

    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    return spoil


def in_use(name: str, kind: str) -> Spoil:
    """A folder that a run of this kind, this process, is at work in."""
    return writing(f"{name}/.{kind}.lock", folder_lock._encode(folder_lock._describe_self(), 0))


def changing(name: str, change: Callable[[bytes], bytes], new: str | None = None) -> Spoil:
    """Changes a file, or makes a copy that is."""
    return lambda folder: (folder / (new or name)).write_bytes(change((folder / name).read_bytes()))


def cutting(name: str, new: str | None = None) -> Spoil:
    """Cuts a file in half."""
    return changing(name, lambda content: content[: len(content) // 2], new)


def flipping(name: str, new: str) -> Spoil:
    """Makes a copy of which one bit, in the middle, is another."""

    def flip(content: bytes) -> bytes:
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]

    return changing(name, flip, new)


class Canary:
    """Unpickling this would create a file."""

    def __reduce__(self) -> tuple:
        return os.mknod, ("canary",)


def saving(name: str, content: object) -> Spoil:
    """Puts a checkpoint there."""
    return lambda folder: atomic_save(content, folder / name)


OF_OTHERS = {"model": {"fake_latent": torch.zeros(1, 8)}, "optimizer": {}, "epoch": 0}
resumable = saving("empty/checkpoint-last.pth", {**OF_OTHERS, "args": argparse.Namespace()})
malicious_checkpoint = saving("evil.pth", {"model": Canary()})


def nan_weights(folder: Path) -> None:
    content = torch.load(folder / "lpd.pth", weights_only=True)
    content["model"]["mask_token"][:] = torch.nan
    torch.save(content, folder / "nan.pth")


def other_tokens(folder: Path) -> None:
    content = torch.load(folder / "lpd.pth", weights_only=True)
    torch.save({**content, "tokenizer_fingerprint": "0123456789abcdef"}, folder / "other.pth")


def other_tokenizer(folder: Path) -> None:
    save_tokenizer(folder / "other.pt", tiny_tokenizer(seed=5))


def other_codes(folder: Path) -> None:
    tokenizer = VQModel(**{**tiny_tokenizer().config, "codebook_size": 16})
    save_tokenizer(folder / "other.pt", tokenizer)


def order_rows(count: int, fifth: Sequence[int] = range(GRID.num_tokens)) -> Spoil:
    """Puts a JSON file of orders there."""
    rows = [list(fifth if row == 4 else range(GRID.num_tokens)) for row in range(count)]
    return writing("orders.json", json.dumps(rows))


repeat_a_position = [7, *range(1, GRID.num_tokens)]
shorten_a_row = range(GRID.num_tokens - 1)


def other_grid_orders(folder: Path) -> None:
    write_orders(folder / "orders.npy", np.tile(np.arange(64), (9, 1)))


def editing_index(**entries: object) -> Spoil:
    """Changes entries of the token cache's index."""
    return changing(
        "cache/index.json", lambda index: json.dumps({**json.loads(index), **entries}).encode()
    )


def removing(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def piping(name: str) -> Spoil:
    """Puts a pipe there, which nobody writes to."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def array(name: str, values: np.ndarray) -> Spoil:
    """Puts an array there."""
    return lambda folder: np.save(folder / name, values)


def unfinished_cache(folder: Path) -> None:
    (folder / "new").mkdir()
    tokens = np.zeros((1, 2, GRID.num_tokens), dtype=np.int64)
    write_shard(folder / "new", 0, tokens, np.zeros(1), GRID.vocab_size)
    record = {"image_size": 32, "batches_per_shard": 1}
    (folder / "new" / RECORD_FILE).write_text(json.dumps(record))


def publishing(tokens: object) -> Spoil:
    """Replaces the tokens of one image in the published layout."""
    return lambda folder: write_published(folder / "published" / "dog" / "1.npz", np.array(tokens))


def packing(name: str, *members: str, length: int) -> Spoil:
    """Puts an archive there that is a thousand times smaller than what it unpacks to."""

    def spoil(folder: Path) -> None:
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in members:
                with archive.open(f"{member}.npy", "w") as file:
                    file.write(claiming("<f8", f"({length // 8},)", b""))
                    for _ in range(length // 2**20):
                        file.write(bytes(2**20))

    return spoil


def statistics(mu: object, sigma: object = None) -> Spoil:
    """Puts reference statistics there."""
    arrays = {"mu": mu} if sigma is None else {"mu": mu, "sigma": sigma}
    return lambda folder: np.savez(folder / "stats.npz", **arrays)


def empty_class(folder: Path) -> None:
    (folder / "data" / "eel").mkdir()


corrupt_image = writing("data/dog/1.png", b"\x89PNG\r\n\x1a\n and no more")


def tarring(mode: str) -> Spoil:
    """Puts a tar of the images there."""

    def spoil(folder: Path) -> None:
        with tarfile.open(folder / "data.tar", mode) as tar:
            tar.add(folder / "data", ".")

    return spoil


def cut_tar(folder: Path) -> None:
    tarring("w:")(folder)
    cutting("data.tar")(folder)


def links_tar(folder: Path) -> None:
    with tarfile.open(folder / "data.tar", "w") as tar:
        link = tarfile.TarInfo("cat/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link, io.BytesIO())
