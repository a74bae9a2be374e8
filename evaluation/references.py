"""What samples are compared with: read from a file, or made of images and kept for next time."""

import hashlib
import logging
from collections.abc import Collection, Set
from dataclasses import dataclass, replace
from functools import reduce
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import torch.hub
from torch import Tensor

from evaluation import features
from evaluation.features import ExtractorKind, FeatureBatch, FeatureExtractor, Features
from evaluation.image_sources import SAMPLES, ImageSource, open_images
from evaluation.metrics import ARRAYS, Moments, Reference, Statistics, save_reference
from util import distributed
from util.arrays import MAX_UNPACKED_BYTES, names_in_npz, read_npz
from util.errors import UserError, blame, describe_os_error

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReferencePlan:
    """Where a `Reference` comes from; checked, not yet made."""

    path: Path  # the file or folder
    needs: frozenset[str]  # the parts that are wanted
    known: Reference  # those that a file held
    source: ImageSource | None  # images to make the others of, if there are any others

    def load(
        self, extractor: FeatureExtractor, batch_size: int = 64, num_workers: int = 0
    ) -> Reference | None:
        """Return all parts on rank 0, None elsewhere. All processes call it: each reads its share.

        Parts made of images are kept under `$TORCH_HOME/lpd_references`, by all that decides them.
        A `UserError`, on all processes, is about images that one of them cannot read.
        """
        known, missing = self.known.copy(), self.needs - self.known.keys()
        if missing:
            decisive = [self.source.digest(), self.source.image_size, extractor.digest()]
            decisive += map(metadata.version, ("torch-fidelity", "Pillow"))
            key = hashlib.sha256(repr(decisive).encode()).hexdigest()
            stem = Path(torch.hub.get_dir()).parent / "lpd_references" / key
            for part in sorted(missing) if distributed.is_main() else ():
                file = Path(f"{stem}-{part}.npz")
                try:
                    if file.exists():
                        known[part] = _read_part(file, part, extractor.kind)
                        logger.info("%s of %s: kept in %s", part, self.path, file)
                except ValueError as error:
                    logger.warning("%s; it is made anew", error)
            missing = distributed.gather(self.needs - known.keys())[0]
        made = self._make(extractor, missing, batch_size, num_workers) if missing else Reference()
        for part, value in made.items():
            file = Path(f"{stem}-{part}.npz")
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                save_reference({part: value}, file)
            except OSError as error:
                logger.warning("the reference is not kept: %s", describe_os_error(error))
        return known | made if distributed.is_main() else None

    def _make(
        self, extractor: FeatureExtractor, parts: Set[str], batch_size: int, num_workers: int
    ) -> Reference:
        """Make parts of images: on rank 0, none elsewhere."""
        extractor = replace(extractor, spatial="spatial" in parts)
        summed = extractor.kind.dims.keys() & parts
        moments: dict[str, Moments] = {}
        batches: list[FeatureBatch] = []

        def work() -> None:
            for ids, batch in features.extract_share(
                self.source, extractor, batch_size, num_workers
            ):
                with blame(f"{self.source.flag}: images {ids[0]} to {ids[-1]} of {self.path}"):
                    for part in summed:
                        more = Moments.of(getattr(batch, part))
                        moments[part] = moments[part].merged(more) if part in moments else more
                if "features" in parts:
                    batches.append((ids, Features(batch.pool.cpu(), batch.logits.cpu())))

        distributed.fail_together(work)
        single = features.gather_features(batches) if "features" in parts else None
        on_host = {
            part: Moments(count, mean.cpu(), scatter.cpu())
            for part, (count, mean, scatter) in moments.items()
        }
        made = Reference()
        if (gathered := distributed.gather_to_main(on_host)) is not None:
            for part in summed:
                counted = [moments[part] for moments in gathered if moments]
                made[part] = reduce(Moments.merged, counted).statistics()
        if single is not None:
            made["features"] = single.pool
        return made


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
        return ReferencePlan(path, needs, Reference(), open_images(path, flag, image_size))
    if not path.is_file():
        expected = "expected an .npz with mu and sigma or a folder of images"
        raise UserError(f"{flag}: {path} does not exist, {expected}")
    try:
        names = names_in_npz(path)
    except (OSError, ValueError) as error:
        expected = _expected("pool", kind)
        raise UserError(f"{flag}: {path} cannot be read ({error}), {expected}") from error
    # ADM's reference batches hold 10,000 images and the statistics of all of ImageNet.
    held = {"features"} if "features" in names else set()
    if names & {"mu", "sigma"} or SAMPLES not in names:
        held |= {"pool", "spatial"}
    with blame(flag):
        known = Reference(**{part: _read_part(path, part, kind) for part in needs & held})
    if needs <= held:
        return ReferencePlan(path, needs, known, None)
    if SAMPLES not in names:
        raise UserError(
            f"{flag}: {path} holds statistics only, but KID, precision and recall compare single "
            f"images: expected a folder of images, an .npz with {SAMPLES}, or one that "
            "scripts/compute_stats.py wrote with --features"
        )
    return ReferencePlan(path, needs, known, open_images(path, flag, image_size))


def _read_part(path: Path, part: str, kind: ExtractorKind) -> Statistics | Tensor:
    """A part of a reference from an .npz; a `ValueError` names a file that does not hold it."""
    expected, names = _expected(part, kind), ARRAYS[part]
    try:
        # Unpacked, features can be as large as the file; packed, no larger than anything packed.
        arrays = read_npz(path, names, max(MAX_UNPACKED_BYTES, path.stat().st_size))
    except KeyError as error:
        raise ValueError(f"{path} holds no {error.args[0]}, {expected}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}), {expected}") from error
    for name, array in arrays.items():
        if part == "features":
            fits = array.shape[1:] == (kind.dims["pool"],) and array.dtype == np.float32
        else:
            shape = (kind.dims[part],) * (1 + names.index(name))
            fits = array.shape == shape and array.dtype.kind in "fiu"
        if not fits:
            found = f"{name} is {array.dtype} of shape {array.shape}"
            raise ValueError(f"{path}: {found}, {expected}")
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} holds NaN or infinity, {expected}")
    if part == "features":
        return torch.from_numpy(arrays["features"].copy())
    mu, sigma = (array.astype(np.float64) for array in arrays.values())
    variances = np.linalg.eigvalsh(sigma)
    symmetric = np.allclose(sigma, sigma.T, rtol=1e-3, atol=1e-6)
    if not symmetric or variances[0] < -1e-3 * variances[-1]:
        raise ValueError(f"{path}: {names[1]} is no covariance, {expected}")
    # No obstacle: the distance needs no inverse. The bound is matrix_rank's.
    rank = int((variances > variances[-1] * len(variances) * np.finfo(np.float64).eps).sum())
    if rank < len(variances):
        logger.warning(
            "%s: %s is singular (rank %d of %d), as that of too few images is; the distance to it "
            "is too large",
            *(path, names[1], rank, len(variances)),
        )
    return Statistics(mu, sigma)


def _expected(part: str, kind: ExtractorKind) -> str:
    if part == "features":
        return f"expected an .npz with features (m, {kind.dims['pool']}) of float32"
    (mean, covariance), dim = ARRAYS[part], kind.dims[part]
    return f"expected an .npz with {mean} ({dim},) and {covariance} ({dim}, {dim})"
