"""All that one evaluation needs, checked before it starts (method section 9)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from evaluation.scoring import Scoring, build_scoring
from models.lpd import LPD
from models.sampling import SamplingSettings, read_sampling
from orders.sources import OrderSource, build_orders, read_group_sizes
from tokenizers.fast_decoder import FastDecoder
from tokenizers.vq_model import VQModel
from util.errors import UserError
from util.geometry import TokenGrid
from util.images import to_uint8


@dataclass(frozen=True)
class Evaluation:
    """How samples are made and scored.

    Attributes:
        num_images: samples over all processes, a multiple of `class_num`.
        class_num: number of classes; samples are class-sorted.
        batch_size: samples per process and batch.
        group_sizes: K sizes that sum to N.
        orders: of every image.
        sampling: how codes are drawn.
        sampler: `fast` or `plain`.
        seed: names the random streams.
        bf16: run the network under bfloat16 autocast.
        decode: codes (B, N) int64 -> images (B, S, S, 3) uint8, on the evaluation's device.
        scoring: what scores the samples; None for nothing.
    """

    num_images: int
    class_num: int
    batch_size: int
    group_sizes: list[int]
    orders: OrderSource
    sampling: SamplingSettings
    sampler: str
    seed: int
    bf16: bool
    decode: Callable[[torch.Tensor], torch.Tensor]
    scoring: Scoring | None

    def with_reference(self) -> Evaluation:
        """The same with what its samples are compared with; see `Scoring.with_reference`."""
        scoring = self.scoring and self.scoring.with_reference()
        return replace(self, scoring=scoring)

    def labels(self, image_ids: np.ndarray) -> torch.Tensor:
        """Class of each image, (B,) int64: image i has label i // (images per class)."""
        return torch.from_numpy(image_ids // (self.num_images // self.class_num))


def build_evaluation(
    args: argparse.Namespace, model: LPD, tokenizer: VQModel, device: torch.device
) -> Evaluation:
    """Check the evaluation and sampling flags and load what they name.

    Raises:
        UserError: a flag or file cannot work; the message names it.
    """
    if args.num_images % args.class_num:
        raise UserError(
            f"--num_images: found {args.num_images}, expected a multiple of the "
            f"{args.class_num} classes (--class_num)"
        )
    sizes = read_group_sizes(args, model.grid.num_tokens)
    return Evaluation(
        num_images=args.num_images,
        class_num=args.class_num,
        batch_size=args.eval_bsz,
        group_sizes=sizes,
        orders=build_orders(args, model.grid, len(sizes)),
        sampling=read_sampling(args, model.label_drop_prob),
        sampler=args.sampler,
        seed=args.seed,
        bf16=args.bf16,
        decode=build_decoder(tokenizer.to(device), model.grid, args.sampler),
        scoring=build_scoring(args, args.img_size, args.num_images, device),
    )


def build_decoder(
    tokenizer: VQModel, grid: TokenGrid, sampler: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What turns codes (B, N) int64 into images (B, S, S, 3) uint8, fast or plainly."""
    if sampler == "fast":
        return FastDecoder(tokenizer, grid.num_tokens)
    return lambda codes: to_uint8(tokenizer.decode_code(codes))
