"""A model and the tokenizer of its codes, ready to generate, from two files."""

from __future__ import annotations

from pathlib import Path

from hub.weights import read_weights
from models.lpd import LPD
from tokenizers.vq_model import VQModel, fingerprint, load_tokenizer
from util.errors import UserError, blame
from util.geometry import grid_side


def load_networks(
    pretrained_ckpt: str | Path, vqgan_path: str | Path, image_size: int | None = None
) -> tuple[LPD, VQModel]:
    """Read two networks that fit each other; their sizes follow from the files.

    Args:
        pretrained_ckpt: an LPD checkpoint.
        vqgan_path: the tokenizer whose codes it generates.
        image_size: pixels that its images must have; None for any.

    Returns:
        Both on the CPU, in eval mode and float32, without gradients.

    Raises:
        UserError: a file cannot be read, or they do not fit; begins with the flag.
    """
    tokenizer = load_tokenizer(vqgan_path)
    weights = read_weights(Path(pretrained_ckpt), "--pretrained_ckpt")
    what = f"--pretrained_ckpt: {pretrained_ckpt}"
    found = tuple(getattr(weights.state.get("pos_embed"), "shape", ()))
    config = {}
    if len(found) == 3:  # else the model's own complaint says more
        with blame(what):
            side = grid_side(found[1] - 1)
        config = {"img_size": side * tokenizer.stride, "vqgan_stride": tokenizer.stride}
    model = LPD.from_weights(weights, what, config)
    if image_size not in (None, model.grid.image_size):
        raise UserError(
            f"{what}: found images of {model.grid.image_size} pixels, expected {image_size}"
        )
    if model.grid.vocab_size != tokenizer.codebook_size:
        raise UserError(
            f"--vqgan_path: {vqgan_path} has {tokenizer.codebook_size} codes, expected the "
            f"{model.grid.vocab_size} of {pretrained_ckpt}"
        )
    known, own = model.tokenizer_fingerprint, fingerprint(tokenizer)
    if known is not None and known != own:
        raise UserError(
            f"{what}: was trained on tokens of tokenizer {known[:12]}, expected this run's "
            f"{own[:12]} (--vqgan_path)"
        )
    return model.requires_grad_(False), tokenizer
