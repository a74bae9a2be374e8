"""The files that the page of bad input names: good ones, and those with something wrong."""

import argparse
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataset.write_cache import RECORD_FILE, write_shard
from evaluation.digits import DigitsClassifier
from models.lpd import lpd_tiny
from tests.fuzzing import claiming, npy
from tests.integration.tiny_world import CLASSES, GRID, TinyWorld, tiny_tokenizer
from tokenizers.vq_model import VQModel, save_tokenizer
from training.checkpoint import LAST
from training.scalars import ScalarLog

RASTER = list(range(GRID.num_tokens))


class Canary:
    """Unpickling this would create a file."""

    def __reduce__(self) -> tuple:
        return os.mknod, ("canary",)


OBJECTS = np.array([Canary()] * 64)


def written(write: Callable[..., object], *values: object, **named: object) -> bytes:
    """What a function writes to the stream that is its first argument."""
    stream = io.BytesIO()
    write(stream, *values, **named)
    return stream.getvalue()


def saved(content: object, **options: object) -> bytes:
    """A checkpoint."""
    return written(lambda stream: torch.save(content, stream, **options))


def tokens(indices: object) -> bytes:
    """Those of an image in the published form."""
    return written(np.savez, indices=indices, indices_flip=indices)


def bomb(stream: io.BytesIO) -> None:
    """An archive a thousand times smaller than what it unpacks to."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("mu", "sigma", "indices", "indices_flip"):
            with archive.open(f"{name}.npy", "w") as file:
                file.write(claiming("<f8", f"({200 * 2**17},)", b""))
                for _ in range(200):
                    file.write(bytes(2**20))


def tar(stream: io.BytesIO, mode: str, folder: Path, link: str | None = None) -> None:
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        archive.add(folder, ".")
        if link is not None:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)


def picture(width: int, height: int, white: tuple[int, ...] | None = None) -> bytes:
    """A black picture, white in a box."""
    image = Image.new("L" if white else "RGB", (width, height))
    if white:
        image.paste(255, white)
    return written(lambda stream: image.save(stream, "PNG"))


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """One bit, in the middle, is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def orders(count: int, fifth: list[int] = RASTER) -> bytes:
    return json.dumps([fifth if row == 4 else RASTER for row in range(count)]).encode()


# Orders, group sizes, names of classes, and nothing.
LISTS = {
    "orders.json": orders(9),
    "few.json": orders(8),
    "orders.txt": orders(9),
    "repeated.json": orders(9, [7, *RASTER[1:]]),
    "ragged.json": orders(9, RASTER[:-1]),
    "cut.json": b"[[0, 1",
    "binary.json": b"\x93NUMPY",
    "grid8.npy": written(np.save, np.tile(np.arange(64), (9, 1))),
    "header.npy": npy("{'descr': ('|u1', 'shape': (9, 16)}"),
    "trillion.npy": claiming("|u1", "(1000000000000, 16)"),
    "fractions.npy": claiming("<f4", "(1, 16)"),
    "objects.npy": written(np.save, OBJECTS),
    "sizes64.json": b"[[1, 15], [1, 63]]",
    "flat.json": b"[1, 15]",
    "fractions.json": b"[[1, 15.0]]",
    "cut_sizes.json": b"[[1, 15], [",
    "names.json": b'["cat", 3]',
    "keys.json": b'{"0": "cat", "1": "dog", "3": "eel"}',
    "latin1.txt": b"jalape\xf1o",
    "file": b"",
}
# Copies of good folders, in which one file is another.
COPIES = {
    "data": "gaps torn piped",
    "published": "grid8 beyond fractions objects cut_published bomb piped_tokens",
    "cache": "cut_index piped_index other_index old_index no_classes more_images no_index no_tokens"
    " cut_tokens float_tokens trillion_tokens more_labels object_tokens object_labels",
}
PIPES = "pipe.npy pipe.json piped/dog/1.png piped_tokens/cat/1.npz piped_index/index.json".split()


def weights(world: TinyWorld) -> dict[str, bytes]:
    lpd, vq = world.checkpoint.read_bytes(), world.tokenizer.read_bytes()
    content = torch.load(world.checkpoint)
    nan = {**content["model"], "mask_token": content["model"]["mask_token"] * torch.nan}
    larger = lpd_tiny(img_size=32, vqgan_stride=4, vqgan_vocab_size=32, class_num=CLASSES)
    evil = {"model": Canary(), "optimizer": Canary(), "epoch": 0}
    narrow = {"model": {"fake_latent": torch.zeros(1, 8)}, "optimizer": {}, "epoch": 0}
    return {
        "lpd.pth": lpd,
        "cut.pth": half(lpd),
        "flipped.pth": flipped(lpd),
        "vq.pt": vq,
        "cut.pt": half(vq),
        "lpd32.pth": saved({"model": larger.state_dict()}),
        "digits.pth": saved({"model": DigitsClassifier().state_dict()}),
        "evil.pth": saved(evil),
        "evil_old.pth": saved(evil, _use_new_zipfile_serialization=False),
        "evil_bare.pth": pickle.dumps(evil),
        f"evil/{LAST}": saved(evil),
        "list.pth": saved([1]),
        "bare.pth": saved({"optimizer": {}}),
        "nan.pth": saved({"model": nan}),
        "other.pth": saved({**content, "tokenizer_fingerprint": "0123456789abcdef"}),
        f"run8/{LAST}": saved({**narrow, "args": argparse.Namespace()}),
        f"torn_run/{LAST}": b"PK\x03\x04",
        "others/checkpoint-25.pth": b"",
        "trained/vq.pt": b"",
    }


def images(folder: Path) -> dict[str, bytes]:
    """Pictures, tars of the images in a folder, archives of images, and their statistics."""
    pixels = np.random.default_rng(0).integers(256, size=(12, 32, 32, 3), dtype=np.uint8)
    samples, zero, unit = written(np.savez, arr_0=pixels), np.zeros(64), np.eye(64)
    packed = written(bomb)
    return {
        "torn/dog/1.png": b"\x89PNG\r\n\x1a\n and no more",
        "text.png": b"no image",
        "data.tar.gz": written(tar, "w:gz", folder),
        "cut.tar": half(written(tar, "w:", folder)),
        "links.tar": written(tar, "w:", folder, "cat/1.png"),
        "grid.png": picture(16, 16),
        "long.png": picture(1, 300_000),
        "white.png": picture(16, 16, (0, 0, 16, 16)),
        "mask.png": picture(16, 9),
        "wide.png": picture(64, 16, (0, 0, 9, 16)),
        "narrow/00006.png": picture(32, 32),
        "narrow/00007.png": picture(28, 32),
        "torn_samples/00006.png": picture(32, 32),
        "torn_samples/00007.png": half(picture(32, 32)),
        "samples.npz": samples,
        "flipped.npz": flipped(samples),
        "few.npz": written(np.savez, arr_0=pixels[:3]),
        "one.npz": written(np.savez, arr_0=pixels[:1]),
        "small.npz": written(np.savez, arr_0=pixels[:, :16, :16]),
        "numbers.npz": written(np.savez, arr_0=np.zeros((4, 32, 32, 3))),
        "stats.npz": written(np.savez, mu=zero, sigma=unit),
        "mu.npz": written(np.savez, mu=zero),
        "inception.npz": written(np.savez, mu=np.zeros(2048), sigma=[0.0]),
        "nan.npz": written(np.savez, mu=zero * np.nan, sigma=unit),
        "tri.npz": written(np.savez, mu=zero, sigma=np.tri(64)),
        "objects.npz": written(np.savez, mu=OBJECTS, sigma=unit),
        "text.npz": b"mu",
        "bomb.npz": packed,
        "bomb/dog/1.npz": packed,
    }


def caches(cache: Path) -> dict[str, bytes]:
    """What is another in copies of a token cache, and of one in the published form."""
    index = (cache / "index.json").read_bytes()

    def with_entry(name: str, value: object) -> bytes:
        return json.dumps({**json.loads(index), name: value}).encode()

    return {
        "cut_index/index.json": half(index),
        "other_index/index.json": b"{}",
        "old_index/index.json": with_entry("version", 1),
        "no_classes/index.json": with_entry("classes", None),
        "more_images/index.json": with_entry("num_images", 10**12),
        "cut_tokens/cache-tokens.npy": half((cache / "cache-tokens.npy").read_bytes()),
        "float_tokens/cache-tokens.npy": written(np.save, np.zeros((48, 2, 16), np.float32)),
        "trillion_tokens/cache-tokens.npy": claiming("<u2", "(1000000000000, 2, 16)"),
        "more_labels/cache-labels.npy": written(np.save, np.full(48, 3, np.int32)),
        "object_tokens/cache-tokens.npy": written(np.save, OBJECTS),
        "object_labels/cache-labels.npy": written(np.save, OBJECTS),
        "grid8/dog/1.npz": tokens([0] * 64),
        "beyond/dog/1.npz": tokens([32] * 16),
        "fractions/dog/1.npz": tokens([0.5] * 16),
        "objects/cat/1.npz": tokens(OBJECTS[:16]),
        "cut_published/cat/1.npz": half(tokens(RASTER)),
    }


def build_files(world: TinyWorld, folder: Path) -> Path:
    """Write all of them to a new folder."""

    def path(name: str) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        return folder / name

    for image in ("cat/1", "cat/2", "dog/1", "dog/2"):
        path(f"data/{image}.png").write_bytes(picture(16, 16, (0, 0, 8, 16)))
        path(f"published/{image}.npz").write_bytes(tokens(RASTER))
    shutil.copytree(world.cache, folder / "cache")
    contents = weights(world) | images(folder / "data") | caches(world.cache) | LISTS
    for source, copies in COPIES.items():
        for name in copies.split():
            shutil.copytree(folder / source, folder / name)
    for name, content in contents.items():
        path(name).write_bytes(content)
    for name in PIPES:
        os.mkfifo(path(name))
    for name in ("no_index/index.json", "no_tokens/cache-tokens.npy"):
        path(name)
    for name in ("empty", "folder.png", "gaps/eel", "busy", "unfinished"):
        (folder / name).mkdir()
    save_tokenizer(folder / "other.pt", tiny_tokenizer(seed=5))
    sizes = {**tiny_tokenizer().config, "codebook_size": 16}
    save_tokenizer(folder / "codes16.pt", VQModel(**sizes))
    write_shard(folder / "unfinished", 0, np.zeros((1, 2, 16), int), np.zeros(1), GRID.vocab_size)
    record = {"image_size": 32, "batches_per_shard": 1}
    (folder / "unfinished" / RECORD_FILE).write_text(json.dumps(record))
    log = ScalarLog(folder / "run")
    log.add(0, {"psnr": 20.0})  # of no training of LPD
    log.close()
    return folder
