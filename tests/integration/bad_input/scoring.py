"""Bad input of `main_lpd.py --images`, of `--metrics`, and of `scripts/compute_stats.py`."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.integration.bad_input import files
from tests.integration.bad_input.files import Spoil
from tests.integration.bad_input.table import Group, cases
from tests.unit.evaluation.scoring_files import write_folder

_NETWORK = "--feature_extractor digits --feature_extractor_weights digits.pth --device cpu"


def samples(name: str, count: int = 12, size: int = 32, spoil: Spoil | None = None) -> Spoil:
    """Puts black images there, an archive if the name ends in .npz, else a folder; spoils them."""

    def write(folder: Path) -> None:
        pixels = np.zeros((count, size, size, 3), dtype=np.uint8)
        if name.endswith(".npz"):
            np.savez(folder / name, arr_0=pixels)
        else:
            write_folder(folder / name, pixels)
        if spoil is not None:
            spoil(folder)

    return write


def one_narrow(folder: Path) -> None:
    Image.new("RGB", (28, 32)).save(folder / "samples" / "00007.png")


def array(name: str, **arrays: np.ndarray) -> Spoil:
    """Puts an archive of these arrays there."""
    return lambda folder: np.savez(folder / name, **arrays)


IMAGES = Group(
    "Scores of images that are there",
    "main_lpd.py",
    f"--images samples.npz --num_workers 0 {_NETWORK}",
    cases(
        """
        --images no | no such file
          --images: no does not exist, expected a folder of images or an .npz with arr_0
        --images empty | a folder without images
          --images: empty holds 0 images (png,jpg,jpeg), expected at least 2
        --images file | no archive
          --images: file cannot be read (damaged, or no .npz archive), expected an .npz with arr_0,
          uint8 of shape (n, S, S, 3), n > 1
        --images stats.npz | statistics instead of images
          --images: stats.npz holds no arr_0, expected an .npz with arr_0, uint8 of shape (n, S, S,
          3), n > 1
        --images one.npz | one image
          --images: one.npz: arr_0 is uint8 of shape (1, 32, 32, 3), expected an .npz with arr_0,
          uint8 of shape (n, S, S, 3), n > 1
        --images numbers.npz | numbers instead of pixels
          --images: numbers.npz: arr_0 is float64 of shape (4, 32, 32, 3), expected an .npz with
          arr_0, uint8 of shape (n, S, S, 3), n > 1
        --images flipped.npz | one bit is another
          --images: flipped.npz: damaged, or no .npz archive
        --images samples | images of two sizes
          --images: .../samples/00007.png has 28 x 32 pixels, expected 32 x 32: square, all of one
          size
        --images samples | an image cut short
          --images: .../samples/00007.png: cannot be decoded (...), expected an image file
        --images data | images of a size that the network does not take
          --feature_extractor: digits takes images of 32 pixels, found --images of 16, expected 32
        --feature_extractor none | nothing that scores
          --images: found --feature_extractor none, expected one that scores
        --metrics sfid --fid_stats data | a score that the network does not have
          --metrics: found 'sfid', expected a comma-separated list of fid, is, kid, prc for
          lpd-digits
        --metrics fid | nothing to compare with
          --metrics: fid compares with a reference, expected --fid_stats with it
        --metrics kid --fid_stats data | too few images
          --metrics: kid of 12 images is not defined, expected at least 1000
        --metrics prc --fid_stats few.npz | too few images to compare with
          --fid_stats: prc of 3 images is not defined, expected at least 4
        --metrics prc --fid_stats stats.npz | statistics where single images are compared
          --fid_stats: stats.npz holds statistics only, but KID, precision and recall compare single
          images: expected a folder of images, an .npz with arr_0, or one that
          scripts/compute_stats.py wrote with --features
        --fid_stats stats.npz | a covariance that is none
          --fid_stats: stats.npz: sigma is no covariance, expected an .npz with mu (64,) and sigma
          (64, 64)
        --fid_stats small.npz | an archive of another image size as the reference
          --fid_stats: small.npz: arr_0 is uint8 of shape (12, 16, 16, 3), expected an .npz with
          arr_0, uint8 of shape (n, 32, 32, 3), n > 1
        """,
        {
            "statistics instead of images": array("stats.npz", mu=np.zeros(64)),
            "one image": samples("one.npz", count=1),
            "numbers instead of pixels": array("numbers.npz", arr_0=np.zeros((4, 32, 32, 3))),
            "one bit is another": files.flipping("samples.npz", "flipped.npz"),
            "images of two sizes": samples("samples", spoil=one_narrow),
            "an image cut short": samples("samples", spoil=files.cutting("samples/00007.png")),
            "too few images to compare with": samples("few.npz", count=3),
            "statistics where single images are compared": array(
                "stats.npz", mu=np.zeros(64), sigma=np.eye(64)
            ),
            "a covariance that is none": array("stats.npz", mu=np.zeros(64), sigma=np.tri(64)),
            "an archive of another image size as the reference": samples("small.npz", size=16),
        },
    ),
)

MAKING_STATISTICS = Group(
    "Making statistics",
    "scripts/compute_stats.py",
    f"--images samples.npz --out out.npz --img_size 32 --num_workers 0 {_NETWORK}",
    cases(
        """
        no --images | no images
          the following arguments are required: --images
        --out stats.txt | another ending
          --out: found stats.txt, expected a name ending in .npz
        --out file/stats.npz | a file where the folder should be
          --out: file: File exists, expected a folder that can be written to
        --images data --img_size 16 | a size that the network does not take
          --images: found 16 pixels (--img_size), expected 32 for lpd-digits
        --feature_extractor clip | no such network
          --feature_extractor: invalid choice: 'clip' (choose from ...)
        """
    ),
)
