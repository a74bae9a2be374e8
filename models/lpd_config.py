"""LPD's constructor arguments from weights that come without them (method section 2)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from util.geometry import grid_side

# Width, depth and heads of each size.
SIZES = {
    "lpd_tiny": (192, 6, 6),
    "lpd_l": (1024, 24, 16),
    "lpd_xl": (1280, 36, 20),
    "lpd_xxl": (1536, 48, 24),
}
# Pixels per token of the published tokenizer.
_STRIDE = 16
# Flags of a training run that are arguments of the same name, and change no shape.
_SAME_NAME = {
    "label_drop_prob": float,
    "attn_dropout": float,
    "proj_dropout": float,
    "blind_queries": bool,
}


def config_from_shapes(
    state: Mapping[str, Any], flags: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments that build an LPD model with weights of these shapes.

    Shapes say nothing of the heads, of the stride and of dropout. The heads are those of the size
    with this width and depth; the others are taken from the flags, else as published.

    Args:
        state: names to tensors of an LPD model.
        flags: of the run that trained it, empty if unknown.
        given: arguments that are known.

    Raises:
        ValueError: not the weights of an LPD model, or of no known size and no heads given.
    """
    width = _shape(state, "pos_embed", 3)[2]
    depth = len({name.split(".")[1] for name in state if re.match(r"blocks\.\d+\.", name)})
    side = grid_side(_shape(state, "pos_embed", 3)[1] - 1)
    heads = {size[:2]: size[2] for size in SIZES.values()}.get((width, depth))
    heads = given.get("decoder_num_heads", heads)
    if heads is None:
        raise ValueError(
            f"found width {width} and depth {depth}, which is no known size, expected its "
            "decoder_num_heads"
        )
    img_size = flags.get("img_size")
    if not isinstance(img_size, int) or img_size < 1 or img_size % side:
        img_size = side * _STRIDE
    return {
        "img_size": img_size,
        "vqgan_stride": img_size // side,
        "decoder_embed_dim": width,
        "decoder_depth": depth,
        "decoder_num_heads": heads,
        "mlp_ratio": _shape(state, "blocks.0.mlp.fc1.weight", 2)[0] / width,
        "class_num": _shape(state, "class_emb.weight", 2)[0],
        "vqgan_vocab_size": _shape(state, "token_emb.weight", 2)[0],
        **{
            name: flags[name]
            for name, kind in _SAME_NAME.items()
            if isinstance(flags.get(name), kind)
        },
    }


def _shape(state: Mapping[str, Any], name: str, dimensions: int) -> tuple[int, ...]:
    found = state.get(name)
    if not isinstance(found, torch.Tensor) or found.dim() != dimensions or 0 in found.shape:
        raise ValueError(f"found no weight {name} as in LPD, expected the weights of an LPD model")
    return tuple(found.shape)
