"""The images of an evaluation: made, kept on the disk, and what of an earlier one can be kept."""

import argparse
import hashlib
import json
import logging
import re
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from dataset.pictures import open_rgb
from dataset.write_cache import checksum
from evaluation.evaluation import Evaluation
from evaluation.features import FeatureBatch, Features, extract
from evaluation.image_sources import share_of_batches
from models.decoding import generate
from models.fast import FastPath
from models.lpd import LPD
from util import distributed
from util.cli import available_cores
from util.device import HostCopy
from util.errors import UserError, is_out_of_memory
from util.files import open_file, read_json, replacing, write_json
from util.images import MADE_BY, save_png
from util.logs import progress

logger = logging.getLogger(__name__)

# Beside the images: what they show.
RECORD_FILE = "images.json"
# An image, with its id, or what a killed process left of one.
_OURS = re.compile(r"(\d{5,})\.png|\.\d{5,}\.png\.part")


def image_file(folder: Path, image_id: int) -> Path:
    """Return where a sample is saved."""
    return folder / f"{image_id:05d}.png"


@dataclass(frozen=True)
class SampleFolder:
    """A folder of the images of one evaluation."""

    path: Path
    made_by: str  # stands in each image; tells the settings that made it from all others

    @classmethod
    def of(cls, path: Path, settings: Mapping[str, Any]) -> "SampleFolder":
        """Name the folder of an evaluation with these `sample_settings`."""
        text = json.dumps(settings, sort_keys=True)
        return cls(path, hashlib.sha256(text.encode()).hexdigest()[:32])

    def write(self, image_id: int, image: np.ndarray) -> None:
        """Write an image (S, S, 3) uint8."""
        save_png(image, image_file(self.path, image_id), self.made_by)

    def read(self, image_id: int) -> np.ndarray:
        """Read an image (S, S, 3) uint8; a `UserError` if it is damaged or of other settings."""
        file, made_by = image_file(self.path, image_id), None
        with open_file(file) as stream:
            content = stream.read()
        # Every checksum, which decoding does not ask for; Pillow leaves out the last chunk's.
        if content.endswith(b"\0\0\0\0IEND\xaeB`\x82"):
            with suppress(OSError, SyntaxError, ValueError), Image.open(BytesIO(content)) as image:
                image.verify()
                made_by = image.info.get(MADE_BY)
        if made_by != self.made_by:
            raise UserError(f"{file} is damaged or of other settings, expected one of this run")
        return np.asarray(open_rgb(BytesIO(content), str(file)))

    def write_archive(self, path: Path, count: int) -> None:
        """Write `count` images, by id, to the archive that ADM's evaluator reads, one by one.

        One that is missing, damaged or of other settings is an error as of `read`; nothing is left.
        """
        with (
            replacing(path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as member,
        ):
            for image_id in range(count):
                image = self.read(image_id)
                if image_id == 0:
                    shape = (count, *image.shape)
                    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(member, header)
                member.write(image.tobytes())


def sample_settings(
    args: argparse.Namespace, evaluation: Evaluation, model: nn.Module, fingerprint: str | None
) -> dict[str, Any]:
    """Collect all that decides what the images of an evaluation show, for a JSON file."""
    weights = 0
    for value in model.state_dict().values():
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        weights = zlib.crc32(data.numpy(), weights)
    orders = {"order": args.order}
    if args.lpd_order_file:
        orders["order_file"] = checksum(Path(args.lpd_order_file))
    elif args.order == "lpd":
        orders["thresholds"] = [args.proximity_threshold, args.repulsion_threshold]
    copied = ("num_images", "group_sizes", "sampler", "seed", "bf16")
    return {
        "weights": weights,
        "tokenizer": fingerprint,
        "classes": evaluation.class_num,
        **{name: getattr(evaluation, name) for name in copied},
        **orders,
        **vars(evaluation.sampling),
        "device": args.device.partition(":")[0],
        "torch": torch.__version__,
    }


def keep_or_clear(folder: Path, record: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder; keep its images if the JSON file `record` holds the same settings.

    Else the results of earlier evaluations go, and `record` says what those to come will show.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError, ValueError):
        if read_json(record) == json.loads(json.dumps(settings)):
            return
    images = [path for path in folder.iterdir() if _OURS.fullmatch(path.name)]
    for path in (*images, record.with_name("samples.npz"), record.with_name("metrics.json")):
        path.unlink(missing_ok=True)
    if images:
        logger.info("%s: %d images of other settings are deleted", folder, len(images))
    write_json(settings, record)


def image_ids_in(folder: Path, num_images: int) -> np.ndarray:
    """List the ids (n,) int64 below `num_images` of the images in a folder, if it is there."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    ids = sorted(int(match[1]) for match in map(_OURS.fullmatch, names) if match and match[1])
    return np.array([image_id for image_id in ids if image_id < num_images], dtype=np.int64)


def kept_share(evaluation: Evaluation, folder: SampleFolder | None) -> list[FeatureBatch]:
    """Read this process's part of the images that an earlier evaluation left, if they are whole."""

    def read(image_id: int) -> np.ndarray | None:
        with suppress(OSError, ValueError):
            return folder.read(image_id)
        return None

    ids = image_ids_in(folder.path, evaluation.num_images) if folder is not None else np.arange(0)
    ids = ids[ids % distributed.world_size() == distributed.rank()]
    if not len(ids):
        return []
    batches: list[FeatureBatch] = []
    with (
        ThreadPoolExecutor(available_cores()) as threads,
        progress(total=len(ids), desc="images there already", unit="image") as bar,
    ):
        for start in range(0, len(ids), evaluation.batch_size):
            batch = ids[start : start + evaluation.batch_size]
            images = zip(batch, threads.map(read, batch), strict=True)
            whole = {image_id: image for image_id, image in images if image is not None}
            features = None
            if evaluation.scoring is not None and whole:
                pixels = torch.from_numpy(np.stack([*whole.values()]))
                features = extract(evaluation.scoring.extractor, pixels).cpu()
            batches.append((np.array([*whole], dtype=np.int64), features))
            bar.update(len(batch))
    return batches


def make_share(
    model: LPD, evaluation: Evaluation, folder: SampleFolder | None, to_do: np.ndarray
) -> list[FeatureBatch]:
    """Make this process's part of the images `to_do`, (n,) ids: every world-size-th batch."""
    mine = [to_do[places] for places in share_of_batches(len(to_do), evaluation.batch_size)]
    if not mine:
        return []
    batches: list[FeatureBatch] = []
    writes: list[Future[None]] = []
    with (
        ThreadPoolExecutor(available_cores()) as threads,
        progress(total=sum(map(len, mine)), desc="evaluate", unit="image") as bar,
    ):
        started = ((ids, _start_batch(model, evaluation, ids)) for ids in mine)
        # In pairs: while a GPU makes one batch, the host handles the one before.
        for (ids, samples), _ in pairwise(chain(started, [None])):
            images, *parts = samples.wait()
            for write in writes:  # one batch may wait for threads that write, no more
                write.result()
            if folder is not None:
                pairs = zip(ids, images.numpy(), strict=True)
                writes = [threads.submit(folder.write, *pair) for pair in pairs]
            # Page-locked memory is for the way only.
            features = Features(*(part.clone() for part in parts)) if parts else None
            batches.append((ids, features))
            bar.update(len(ids))
    for write in writes:
        write.result()
    return batches


def _start_batch(model: LPD, evaluation: Evaluation, image_ids: np.ndarray) -> HostCopy:
    """Start images and, if something scores them, their features on their way to the host."""

    def start(count: int) -> HostCopy | None:
        """Start the first of the images; None if they do not fit into memory."""
        try:
            images = generate_images(model, evaluation, image_ids[:count])
            if evaluation.scoring is None:
                return HostCopy(images)
            return HostCopy(images, *extract(evaluation.scoring.extractor, images).tensors())
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None

    def too_large(count: int) -> bool:
        FastPath.of(model).graphs.clear()  # whose memory would count against the attempt
        torch.cuda.empty_cache()
        started = start(count)
        if started is not None:
            started.wait()
        return started is None

    started = start(len(image_ids))
    if started is not None:
        return started
    fits = bisect_left(range(1, len(image_ids)), True, key=too_large)
    raise UserError(
        f"--eval_bsz: {len(image_ids)} images at a time do not fit into the memory of "
        f"{model.pos_embed.device}, "
        + (f"expected at most {fits}" if fits else "and neither does a single one")
    )


def generate_images(model: LPD, evaluation: Evaluation, image_ids: np.ndarray) -> torch.Tensor:
    """(B,) image ids -> (B, S, S, 3) uint8 on the device."""
    device = model.pos_embed.device
    of_each_class = evaluation.num_images // evaluation.class_num
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=evaluation.bf16):
        tokens = generate(
            model,
            torch.from_numpy(image_ids // of_each_class),
            evaluation.orders(image_ids, evaluation.group_sizes),
            evaluation.group_sizes,
            evaluation.sampling,
            seed=evaluation.seed,
            image_ids=image_ids,
            sampler=evaluation.sampler,
        )
    return evaluation.decode(tokens)
