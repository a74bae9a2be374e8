"""A Slurm for the tests of this folder, and the digits demo's data in miniature."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.commands import succeed
from tests.slurm.cluster import Cluster, NoSlurmError, two_nodes

# Enough for all jobs of the tests at once.
CORES = 16
IMAGES_PER_DIGIT = 16


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes of `CORES` cores each, as they say."""
    with ExitStack() as at_exit:
        try:
            running = at_exit.enter_context(two_nodes(CORES))
        except NoSlurmError as error:
            pytest.skip(f"no Slurm on this machine: {error}")
        yield running


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer and the token cache of a few handwritten digits."""
    folder = tmp_path_factory.mktemp("digits")
    images = folder / "images"
    succeed("scripts/demo_digits.py", "prepare", "--output", images)
    shutil.rmtree(images / "test")
    for digit in (images / "train").iterdir():
        for path in sorted(digit.iterdir())[IMAGES_PER_DIGIT:]:
            path.unlink()
    common = ["--data_path", images, "--img_size", "32", "--device", "cpu", "--num_workers", "0"]
    succeed(
        *("tokenizers/train_vq.py", *common, "--flip_prob", "0", "--codebook_size", "256"),
        *("--ch", "32", "--ch_mult", "1", "1", "1", "--num_res_blocks", "1", "--z_channels", "32"),
        *("--batch_size", "16", "--epochs", "1", "--output_dir", folder),
    )
    cached = ["--vqgan_path", folder / "vq.pt", "--cached_path", folder / "cache"]
    succeed("main_cache.py", *common, *cached)
    return folder
