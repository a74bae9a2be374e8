"""The images of an evaluation on disk, and what of an earlier one can be kept."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn

from dataset.pictures import open_rgb
from dataset.write_cache import checksum
from evaluation.evaluation import Evaluation
from evaluation.features import Features, FeatureShare, extract
from models.cuda_graphs import largest_that_fits
from models.decoding import generate
from models.fast import FastPath
from models.lpd import LPD
from util import distributed
from util.cli import available_cores
from util.device import HostCopy
from util.errors import UserError, is_out_of_memory
from util.files import open_file, read_json, replacing, write_json
from util.images import MADE_BY, Pixels, as_pixels, save_png
from util.logs import progress

logger = logging.getLogger(__name__)

# Images that may wait for a thread; beyond that the maker of the images waits.
MAX_WAITING = 1024
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def image_file(folder: Path, image_id: int) -> Path:
    """Where a sample is saved."""
    return folder / f"{image_id:05d}.png"


class PngWriters:
    """Threads that write `{image id:05d}.png`; leaving the block waits for all files.

    Args:
        folder: where to; None writes nothing.

    Raises:
        OSError: a file cannot be written; raised by a later `write` or at the end of the block.
    """

    def __init__(self, folder: SampleFolder | None) -> None:
        self._folder = folder
        self._threads = ThreadPoolExecutor(available_cores())
        self._waiting: deque[Future[None]] = deque()

    def write(self, images: np.ndarray, image_ids: Sequence[int] | np.ndarray) -> None:
        """Hand over images (B, S, S, 3) uint8 with their ids (B,)."""
        if self._folder is None:
            return
        folder, made_by = self._folder.path, self._folder.made_by
        for image, image_id in zip(images, image_ids, strict=True):
            path = image_file(folder, image_id)
            self._waiting.append(self._threads.submit(save_png, image, path, made_by))
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft().result()

    def __enter__(self) -> PngWriters:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            for write in self._waiting:
                write.result()


# Beside the images: what they show.
RECORD_FILE = "images.json"
_IMAGE = re.compile(r"(\d{5,})\.png")
_OURS = re.compile(r"\d{5,}\.png|\.\d{5,}\.png\.part")


def sample_settings(
    args: argparse.Namespace, evaluation: Evaluation, model: nn.Module, fingerprint: str | None
) -> dict[str, Any]:
    """All that decides what the images of an evaluation show, for a JSON file.

    Args:
        args: the run's flags.
        evaluation: made from them.
        model: the network; its weights are read once.
        fingerprint: of the tokenizer.
    """
    orders = {"order": args.order}
    if args.lpd_order_file:
        orders["order_file"] = checksum(Path(args.lpd_order_file))
    elif args.order == "lpd":
        orders["thresholds"] = [args.proximity_threshold, args.repulsion_threshold]
    return {
        "weights": _weights_checksum(model),
        "tokenizer": fingerprint,
        "num_images": evaluation.num_images,
        "classes": evaluation.class_num,
        "group_sizes": evaluation.group_sizes,
        **orders,
        **vars(evaluation.sampling),
        "sampler": evaluation.sampler,
        "seed": evaluation.seed,
        "bf16": evaluation.bf16,
        "device": args.device.partition(":")[0],
        "torch": torch.__version__,
    }


def _weights_checksum(model: nn.Module) -> int:
    found = 0
    for value in model.state_dict().values():
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        found = zlib.crc32(data.numpy(), found)
    return found


@dataclass(frozen=True)
class SampleFolder:
    """A folder of images of one evaluation.

    Attributes:
        path: where `{image id:05d}.png` are.
        made_by: stands in each of them; tells the settings that made them from all others.
    """

    path: Path
    made_by: str

    @classmethod
    def of(cls, path: Path, settings: Mapping[str, Any]) -> SampleFolder:
        """The folder of an evaluation with these `sample_settings`."""
        text = json.dumps(settings, sort_keys=True)
        return cls(path, hashlib.sha256(text.encode()).hexdigest()[:32])

    def open(self, image_id: int) -> np.ndarray:
        """An image (S, S, 3) uint8, if it is whole and these settings made it.

        Raises:
            UserError: it is not.
            OSError: it cannot be read.
        """
        file = image_file(self.path, image_id)
        with open_file(file) as stream:
            content = stream.read()
        image = open_rgb(BytesIO(content), str(file))
        if not is_whole_png(content) or image.info.get(MADE_BY) != self.made_by:
            raise UserError(f"{file} is damaged or of other settings, expected one of this run")
        return np.asarray(image)


def keep_or_clear(folder: Path, record: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder; keep its images if `record` says that an evaluation like this made them.

    Else the images of earlier evaluations go, and `record` says what those to come will show.

    Args:
        folder: of the images.
        record: a JSON file.
        settings: of `sample_settings`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        known = read_json(record)
    except (OSError, ValueError):
        known = None
    if known == json.loads(json.dumps(settings)):
        return
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name):
            path.unlink()
    write_json(settings, record)


def image_ids_in(folder: Path, num_images: int) -> np.ndarray:
    """Ids (n,) int64 below `num_images` of the images in a folder, sorted; none without it."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    matches = filter(None, map(_IMAGE.fullmatch, names))
    ids = sorted(int(match[1]) for match in matches)
    return np.array([image_id for image_id in ids if image_id < num_images], dtype=np.int64)


def read_images(
    folder: SampleFolder, image_ids: Sequence[int] | np.ndarray, image_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Those of the images that are whole, and made by the settings of the folder.

    Args:
        folder: of the images.
        image_ids: (B,) ids.
        image_size: side S that they must have, pixels.

    Returns:
        Ids (n,) int64 and images (n, S, S, 3) uint8, n <= B.
    """

    def read(image_id: int) -> np.ndarray | None:
        try:
            image = folder.open(image_id)
        except (UserError, OSError, ValueError):
            return None
        return image if image.shape == (image_size, image_size, 3) else None

    with ThreadPoolExecutor(available_cores()) as threads:
        images = list(threads.map(read, image_ids))
    whole = [place for place, image in enumerate(images) if image is not None]
    shape = (len(whole), image_size, image_size, 3)
    pixels = np.array([images[place] for place in whole], dtype=np.uint8).reshape(shape)
    return np.asarray(image_ids, dtype=np.int64)[whole], pixels


def write_archive(folder: SampleFolder, path: Path, count: int) -> None:
    """All images in one ADM-style archive, by id.

    Raises:
        UserError: an image is missing, damaged or of other settings.
    """
    write_npz_archive(path, map(folder.open, range(count)), count)


def is_whole_png(content: bytes) -> bool:
    """Whether a PNG file is what was written: all chunks to the last, each with its checksum.

    A decoder is content with less: it passes over a damaged checksum, or a missing end.
    """
    kind, start = b"", len(_PNG_SIGNATURE)
    if not content.startswith(_PNG_SIGNATURE):
        return False
    while kind != b"IEND":
        # Length of the data, kind, data, checksum of the two before.
        kind = content[start + 4 : start + 8]
        end = start + 8 + int.from_bytes(content[start : start + 4], "big")
        if content[end : end + 4] != zlib.crc32(content[start + 4 : end]).to_bytes(4, "big"):
            return False
        start = end + 4
    return start == len(content)


def write_npz_archive(path: str | Path, images: Iterable[Pixels], count: int) -> None:
    """Write the sample archive ADM's evaluator reads: `arr_0`, (count, S, S, 3) uint8.

    Images go to the file one by one, uncompressed, so need not fit in memory together. A
    `ValueError` if they are of several sizes, or not `count`.
    """
    shape, written = None, 0
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        for written, image in enumerate(images, start=1):
            pixels = as_pixels(image, 3)
            if shape is None:
                shape = pixels.shape
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
                np.lib.format.write_array_header_1_0(member, header)
            if pixels.shape != shape:
                raise ValueError(
                    f"image {written - 1}: found shape {pixels.shape}, expected {shape}"
                )
            member.write(pixels.data)
        if written != max(count, 1):
            raise ValueError(f"found {written} images, expected {max(count, 1)}")


def kept_share(
    evaluation: Evaluation, image_folder: SampleFolder | None, image_size: int
) -> FeatureShare:
    """This process's part of the images that an earlier evaluation left, if they are whole."""
    if image_folder is None:
        return FeatureShare.join([], [])
    present = image_ids_in(image_folder.path, evaluation.num_images)
    mine = present[present % distributed.world_size() == distributed.rank()]
    if not len(mine):
        return FeatureShare.join([], [])
    ids, features = [], []
    with progress(total=len(mine), desc="images there already", unit="image") as bar:
        for start in range(0, len(mine), evaluation.batch_size):
            batch = mine[start : start + evaluation.batch_size]
            whole, images = read_images(image_folder, batch, image_size)
            ids.append(whole)
            if evaluation.scoring is not None and len(whole):
                found = extract(evaluation.scoring.extractor, torch.from_numpy(images))
                features.append(found.cpu())
            bar.update(len(batch))
    return FeatureShare.join(ids, features)


def make_share(
    model: LPD, evaluation: Evaluation, image_folder: SampleFolder | None, to_do: np.ndarray
) -> FeatureShare:
    """Make this process's part of the images `to_do`, (n,) ids."""
    batches = list(_image_id_batches(to_do, evaluation.batch_size))
    features: list[Features] = []
    total = sum(map(len, batches))
    if not total:
        return FeatureShare.join([], [])
    with (
        PngWriters(image_folder) as writers,
        progress(total=total, desc="evaluate", unit="image") as bar,
    ):

        def settle(image_ids: np.ndarray, samples: HostCopy) -> None:
            images, *found = samples.wait()
            writers.write(images.numpy(), image_ids)
            if found:
                # Page-locked memory is for the way only.
                features.append(Features(*(values.clone() for values in found)))
            bar.update(len(image_ids))

        # While a GPU makes one batch, the host handles the one before.
        waiting: deque[tuple[np.ndarray, HostCopy]] = deque()
        for image_ids in batches:
            waiting.append((image_ids, _start_batch(model, evaluation, image_ids)))
            if len(waiting) > 1:
                settle(*waiting.popleft())
        for batch in waiting:
            settle(*batch)
    return FeatureShare.join(batches, features)


def _start_batch(model: LPD, evaluation: Evaluation, image_ids: np.ndarray) -> HostCopy:
    """Images and, if something scores them, their features, on their way to the host.

    Raises:
        UserError: the batch does not fit into the device's memory; the message says what does.
    """

    def start(ids: np.ndarray) -> HostCopy:
        images = generate_images(model, evaluation, ids)
        if evaluation.scoring is None:
            return HostCopy(images)
        return HostCopy(images, *extract(evaluation.scoring.extractor, images).tensors())

    try:
        return start(image_ids)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Only out of that block is the failed attempt's memory free.
    size = len(image_ids)

    def attempt(smaller: int) -> None:
        FastPath.of(model).graphs.clear()  # whose memory would count against this attempt
        start(image_ids[:smaller]).wait()

    fits = largest_that_fits(attempt, size)
    raise UserError(
        f"--eval_bsz: {size} images at a time do not fit into the memory of "
        f"{model.pos_embed.device}, "
        + (f"expected at most {fits}" if fits else "and neither does a single one")
    )


def _image_id_batches(image_ids: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """This process's part of image ids: every world-size-th batch of them."""
    first, stride = distributed.rank() * size, distributed.world_size() * size
    for start in range(first, len(image_ids), stride):
        yield image_ids[start : start + size]


def generate_images(model: LPD, evaluation: Evaluation, image_ids: np.ndarray) -> torch.Tensor:
    """(B,) image ids -> (B, S, S, 3) uint8 on the device."""
    device = model.pos_embed.device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=evaluation.bf16):
        tokens = generate(
            model,
            evaluation.labels(image_ids),
            evaluation.orders(image_ids, evaluation.group_sizes),
            evaluation.group_sizes,
            evaluation.sampling,
            seed=evaluation.seed,
            image_ids=image_ids,
            sampler=evaluation.sampler,
        )
    return evaluation.decode(tokens)
