"""The tokenizer-training command, in one process and in two."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import opens_anywhere, results_in, run_command
from tokenizers.train_vq import build_model, build_parser, revive_unused_codes
from tokenizers.vq_model import VectorQuantizer, fingerprint, load_tokenizer
from util.errors import UserError
from util.folder_lock import folder_lock

SIZES = """
--img_size 16 --codebook_size 12 --codebook_embed_dim 4 --ch 32 --ch_mult 1 1 --num_res_blocks 1
--z_channels 8 --batch_size 8 --epochs 2 --lr 1e-3 --device cpu
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = root / "train" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def _train(data, output, *more, processes=None):
    flags = [*SIZES.split(), "--data_path", data, "--output_dir", output, *more]
    return run_command("tokenizers/train_vq.py", *flags, processes=processes)


def test_two_epochs_write_a_tokenizer_and_repeat_exactly(folder, tmp_path):
    done = _train(folder, tmp_path / "a")
    assert done.returncode == 0, done.stderr
    assert "of 12 codes in use" in done.stderr
    model = load_tokenizer(tmp_path / "a" / "vq.pt", codebook_size=12)
    assert model.stride == 2
    assert opens_anywhere(tmp_path / "a" / "vq.pt")
    names = {path.name.split(".")[0] for path in results_in(tmp_path / "a")}
    assert names == {"vq", "reconstructions", "events"}
    pairs = Image.open(tmp_path / "a" / "reconstructions.png")
    assert pairs.size == (8 * 16 + 7 * 2, 5 * 16 + 4 * 2)  # 20 pairs, 4 in a row

    with folder_lock(tmp_path / "a", "tokenizer"):
        assert "in use by another run" in _train(folder, tmp_path / "a", "--overwrite").stderr
    before = (tmp_path / "a" / "vq.pt").stat().st_mtime_ns
    assert _train(folder, tmp_path / "a", "--overwrite").returncode == 0
    assert (tmp_path / "a" / "vq.pt").stat().st_mtime_ns > before
    assert fingerprint(load_tokenizer(tmp_path / "a" / "vq.pt")) == fingerprint(model)


def test_two_processes_with_entropy_and_bf16(folder, tmp_path):
    more = ("--entropy_ratio", "0.1", "--bf16", "--batch_size", "4")
    done = _train(folder, tmp_path, *more, processes=2)
    assert done.returncode == 0, done.stderr
    assert load_tokenizer(tmp_path / "vq.pt").codebook_size == 12


def _args(*flags):
    return build_parser().parse_args([*SIZES.split(), "--data_path", "x", *flags])


def test_the_seed_decides_the_initial_weights():
    first, again, other = (fingerprint(build_model(_args("--seed", s))) for s in "001")
    assert first == again != other
    with pytest.raises(UserError, match="^--revive_until: found '-0.1'"):
        _args("--revive_until", "-0.1")


def test_unused_codes_move_to_latents():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(6, 3)
    quantizer.codebook_used.fill_(2)
    quantizer.codebook_used[5] = 4
    before = quantizer.embedding.weight.detach().clone()
    latents = torch.nn.functional.normalize(torch.randn(2, 5, 3), dim=-1)
    revive_unused_codes(quantizer, latents, seed=0, step=1)
    after = quantizer.embedding.weight.detach()
    assert torch.equal(after[[2, 4]], before[[2, 4]])
    rows = {tuple(row) for row in latents.flatten(0, 1).tolist()}
    moved = {tuple(row) for row in after[[0, 1, 3, 5]].tolist()}
    assert len(moved) == 4 and moved <= rows
