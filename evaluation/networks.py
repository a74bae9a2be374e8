"""A model and the tokenizer of its codes, ready to generate and to decode."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from hub.published import resolve_flags
from hub.weights import read_weights
from models.lpd import LPD
from tokenizers.fast_decoder import FastDecoder
from tokenizers.vq_model import VQModel, fingerprint, load_tokenizer
from util import distributed
from util.errors import UserError, blame
from util.geometry import TokenGrid, grid_side
from util.images import to_uint8


def load_networks(
    pretrained_ckpt: str | Path, vqgan_path: str | Path, image_size: int | None = None
) -> tuple[LPD, VQModel]:
    """Read an LPD and the tokenizer of its codes; their sizes follow from the files.

    Both are on the CPU, in eval mode and float32, without gradients. A `UserError`, which begins
    with the flag, is about files that do not fit each other, or `image_size`, pixels, if given.
    """
    tokenizer = load_tokenizer(vqgan_path)
    weights = read_weights(Path(pretrained_ckpt), "--pretrained_ckpt")
    what, config = f"--pretrained_ckpt: {pretrained_ckpt}", {}
    shape = tuple(getattr(weights.state.get("pos_embed"), "shape", ()))
    if len(shape) == 3:  # else the model's own complaint says more
        with blame(what):
            side = grid_side(shape[1] - 1)
        config = {"img_size": side * tokenizer.stride, "vqgan_stride": tokenizer.stride}
    model = LPD.from_weights(weights, what, config)
    if image_size not in (None, model.grid.image_size):
        found = f"found images of {model.grid.image_size} pixels"
        raise UserError(f"{what}: {found}, expected {image_size}")
    if model.grid.vocab_size != tokenizer.codebook_size:
        expected = f"expected the {model.grid.vocab_size} of {pretrained_ckpt}"
        raise UserError(
            f"--vqgan_path: {vqgan_path} has {tokenizer.codebook_size} codes, {expected}"
        )
    weights.require_tokenizer(fingerprint(tokenizer), what)
    return model.requires_grad_(False), tokenizer


def read_networks(args: argparse.Namespace) -> tuple[LPD, VQModel]:
    """Load what --pretrained_ckpt and --vqgan_path name, for --device and --bf16."""
    device = distributed.resolve_device(args, distributed.Launch())
    resolve_flags(args)
    model, tokenizer = load_networks(args.pretrained_ckpt, args.vqgan_path)
    if args.bf16:
        model.round_products()
    return model.to(device), tokenizer.to(device)


def build_decoder(
    tokenizer: VQModel, grid: TokenGrid, sampler: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What turns codes (B, N) int64 into images (B, S, S, 3) uint8, fast or plainly."""
    if sampler == "fast":
        return FastDecoder(tokenizer, grid.num_tokens)
    return lambda codes: to_uint8(tokenizer.decode_code(codes))
