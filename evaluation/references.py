"""What samples are compared with: read from a file, or made of images and kept for next time."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
import torch
import torch.hub
from torch import Tensor

from evaluation.features import (
    ExtractorKind,
    FeatureBatch,
    FeatureExtractor,
    Features,
    extract_share,
    gather_features,
)
from evaluation.image_sources import SAMPLES, ImageSource, open_images
from evaluation.metrics import ARRAYS, Moments, Reference, Statistics, save_reference
from util import distributed
from util.arrays import MAX_UNPACKED_BYTES, names_in_npz, read_npz
from util.errors import UserError, blame, describe_os_error

logger = logging.getLogger(__name__)

# Increase it when the same images come to give other numbers.
CACHE_FORMAT = 1


@dataclass(frozen=True)
class ReferencePlan:
    """Where a `Reference` comes from; checked, not yet made."""

    path: Path  # the file or folder
    needs: frozenset[str]  # the parts that are wanted
    known: Reference  # those that a file held
    source: ImageSource | None  # images to make the others of, if there are any others

    @classmethod
    def of_images(cls, source: ImageSource, needs: Collection[str]) -> ReferencePlan:
        return cls(source.path, frozenset(needs), Reference(), source)

    def load(
        self, extractor: FeatureExtractor, batch_size: int = 64, num_workers: int = 0
    ) -> Reference | None:
        """Return all parts on rank 0, None elsewhere. All processes call it: each reads its share.

        What is made of images is kept in `cache_folder()`, by their content and the network's. A
        `UserError`, on all processes, is about images that one of them cannot read.
        """
        known = self.known
        if self.source is not None:
            extractor = replace(extractor, spatial="spatial" in self.needs)
            stem = str(cache_folder() / _cache_key(self.source, extractor))
            if distributed.is_main():
                known = known | _read_cache(stem, self.needs - known.keys(), extractor.kind)
            missing = distributed.gather(self.needs - known.keys())[0]
            if missing:
                made = _make(self.source, extractor, missing, batch_size, num_workers)
                _write_cache(stem, made)
                known = known | made
        return known if distributed.is_main() else None


def open_reference(
    path: str | Path, kind: ExtractorKind, image_size: int, needs: Collection[str] = ("pool",)
) -> ReferencePlan:
    """Check what samples of `image_size` are to be compared with; `needs` are the parts wanted.

    `path` is an .npz with `mu` (D,) and `sigma` (D, D), `mu_s` and `sigma_s` for sFID, as ADM
    publishes them, and `features` (m, D); or images (see `open_images`): a folder, or an .npz with
    `arr_0`. A file may hold both: then statistics are not made of the images.
    """
    path, flag, needs = Path(path), "--fid_stats", frozenset(needs)
    if path.is_dir():
        return ReferencePlan.of_images(open_images(path, flag, image_size), needs)
    if not path.is_file():
        raise UserError(
            f"{flag}: {path} does not exist, expected an .npz with mu and sigma or a folder of "
            "images"
        )
    try:
        names = names_in_npz(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{flag}: {path} cannot be read ({error}), {_expected('pool', kind)}"
        ) from error
    # ADM's reference batches hold 10,000 images and the statistics of all of ImageNet.
    held = {"features"} if "features" in names else set()
    if names & {"mu", "sigma"} or SAMPLES not in names:
        held |= {"pool", "spatial"}
    known = Reference(**{part: _read_part(path, part, kind, flag) for part in needs & held})
    if needs <= held:
        return ReferencePlan(path, needs, known, None)
    if SAMPLES not in names:
        raise UserError(
            f"{flag}: {path} holds statistics only, but KID, precision and recall compare single "
            f"images: expected a folder of images, an .npz with {SAMPLES}, or one that "
            "scripts/compute_stats.py wrote with --features"
        )
    return ReferencePlan(path, needs, known, open_images(path, flag, image_size))


def cache_folder() -> Path:
    """Where references that were made of images are kept: beside torch-fidelity's own files."""
    return Path(torch.hub.get_dir()).parent / "lpd_references"


def _make(
    source: ImageSource,
    extractor: FeatureExtractor,
    parts: Collection[str],
    batch_size: int,
    num_workers: int,
) -> Reference:
    """`parts` of the reference on rank 0, none elsewhere; every process reads its share."""
    dims = extractor.kind.dims
    moments = {part: Moments.empty(dims[part], extractor.device) for part in dims if part in parts}
    batches: list[FeatureBatch] = []

    def work() -> None:
        for ids, batch in extract_share(source, extractor, batch_size, num_workers):
            with blame(f"{source.flag}: images {ids[0]} to {ids[-1]} of {source.path}"):
                for part, counted in moments.items():
                    counted.add(getattr(batch, part))
            if "features" in parts:
                batches.append((ids, Features(batch.pool.cpu(), batch.logits.cpu())))

    distributed.fail_together(work)
    features = gather_features(batches) if "features" in parts else None
    gathered = distributed.gather_to_main({part: moments[part].cpu() for part in moments})
    made = Reference()
    if gathered is not None:
        first, *others = gathered
        for part, whole in first.items():
            for other in others:
                whole.merge(other[part])
            made[part] = whole.statistics()
    if features is not None:
        made["features"] = features.pool
    return made


def _cache_key(source: ImageSource, extractor: FeatureExtractor) -> str:
    """Hash all that decides the numbers: the images' bytes, network and libraries."""
    import torch_fidelity

    content = {
        "format": CACHE_FORMAT,
        "images": source.digest(),
        "image_size": source.image_size,
        "network": extractor.digest(),
        "torch-fidelity": torch_fidelity.__version__,
        "Pillow": PIL.__version__,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_cache(stem: str, parts: Collection[str], kind: ExtractorKind) -> Reference:
    """Those of `parts` that are kept."""
    kept = Reference()
    for part in sorted(parts):
        path = Path(f"{stem}-{part}.npz")
        if path.exists():
            try:
                kept[part] = _read_part(path, part, kind, "cache")
                logger.info("reference: %s from %s", part, path)
            except UserError as error:
                logger.warning("%s; it is made anew", error)
    return kept


def _write_cache(stem: str, made: Reference) -> None:
    """Keep each part in a file of its own; without room for it the run goes on."""
    for part, value in made.items():
        path = Path(f"{stem}-{part}.npz")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_reference({part: value}, path)
        except OSError as error:
            logger.warning("the reference is not kept: %s", describe_os_error(error))
            return
        logger.info("reference: %s kept in %s", part, path)


def _read_part(path: Path, part: str, kind: ExtractorKind, flag: str) -> Statistics | Tensor:
    """A part of a reference from an .npz, checked."""
    what, expected = f"{flag}: {path}", _expected(part, kind)
    try:
        # Unpacked, features can be as large as the file; packed, no larger than anything packed.
        limit = max(MAX_UNPACKED_BYTES, path.stat().st_size)
        arrays = read_npz(path, ARRAYS[part], limit)
    except KeyError as error:
        raise UserError(f"{what} holds no {error.args[0]}, {expected}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{what} cannot be read ({error}), {expected}") from error
    for name, array in arrays.items():
        if part == "features":
            fits = array.shape[1:] == (kind.dims["pool"],) and array.dtype == np.float32
        else:
            shape = (kind.dims[part],) * (1 if name == ARRAYS[part][0] else 2)
            fits = array.shape == shape and array.dtype.kind == "f"
        if not fits:
            numbers = "" if part == "features" else " of floating-point numbers"
            raise UserError(
                f"{what}: {name} is {array.dtype} of shape {array.shape}, {expected}{numbers}"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{what}: {name} holds NaN or infinity, {expected}")
    if part == "features":
        return torch.from_numpy(arrays["features"].copy())
    mu, sigma = (array.astype(np.float64) for array in arrays.values())
    if (np.diagonal(sigma) < 0).any() or not np.allclose(sigma, sigma.T, rtol=1e-3, atol=1e-6):
        raise UserError(f"{what}: {ARRAYS[part][1]} is no covariance, {expected}")
    return Statistics(mu, sigma)


def _expected(part: str, kind: ExtractorKind) -> str:
    if part == "features":
        return f"expected an .npz with features (m, {kind.dims['pool']}) of float32"
    (mean, covariance), dim = ARRAYS[part], kind.dims[part]
    return f"expected an .npz with {mean} ({dim},) and {covariance} ({dim}, {dim})"
