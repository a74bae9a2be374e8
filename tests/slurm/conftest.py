"""A Slurm for the tests of this folder, and the digits demo's data in miniature."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.apt import MissingProgramsError
from tests.commands import succeed
from tests.few_digits import few_digits
from tests.slurm.cluster import Cluster, two_nodes

CORES = 16  # enough for all jobs of the tests at once


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes of `CORES` cores each, as they say."""
    with ExitStack() as at_exit:
        try:
            running = at_exit.enter_context(two_nodes(CORES))
        except MissingProgramsError as error:
            pytest.skip(f"no Slurm on this machine: {error}")
        yield running


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer and the token cache of 160 handwritten digits."""
    folder = tmp_path_factory.mktemp("digits")
    images = few_digits(folder / "images", train=16, test=0) / "train"
    common = ["--data_path", images, "--img_size", "32", "--device", "cpu", "--num_workers", "0"]
    succeed(
        *("tokenizers/train_vq.py", *common, "--flip_prob", "0", "--codebook_size", "256"),
        *("--ch", "32", "--ch_mult", "1", "1", "1", "--num_res_blocks", "1", "--z_channels", "32"),
        *("--batch_size", "16", "--epochs", "1", "--output_dir", folder),
    )
    cached = ["--vqgan_path", folder / "vq.pt", "--cached_path", folder / "cache"]
    succeed("main_cache.py", *common, *cached)
    return folder
