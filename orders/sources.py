"""Which generation orders exist and how one is made for an image: the one place that knows."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from orders.group_sizes import group_sizes, parse_group_sizes
from orders.locality import locality_aware_orders, random_orders
from orders.order_file import read_orders, warn_of_steps
from util import streams
from util.cli import number
from util.errors import UserError, blame
from util.geometry import TokenGrid

# Image ids (B,), K group sizes -> orders (B, N) int64. A row depends on its own id, the sizes and
# the source's seed alone, so the same image has the same order in every batch and process.
OrderSource = Callable[[np.ndarray, Sequence[int]], np.ndarray]

# Kinds without a file, as the command line calls them, and what people call them.
ORDERS = {"lpd": "locality-aware", "random": "random", "raster": "raster"}
SAMPLING_ORDERS = ("random", "lpd")  # --order
TRAINING_ORDERS = ("random", "raster")  # --train_order


def published_repulsion(num_tokens: int, steps: int) -> float:
    """Return the repulsion threshold published for a grid and steps (method section 6), else 1."""
    return {(256, 20): 2.0, (256, 32): 2.0, (1024, 48): 4.0}.get((num_tokens, steps), 1.0)


def parse_order(text: str, grid: TokenGrid, seed: int, num_images: int) -> OrderSource:
    """Read an order as users write it, or raise ValueError or OSError.

    `random`, `raster`, `lpd` (locality-aware, with the published repulsion threshold of the grid
    and step count, else 1), `lpd:R` or `lpd:R:P` with repulsion threshold R and proximity threshold
    P (1 if not given), or the path of an order file, whose row i is the order of image i and which
    has to serve images 0 to `num_images` - 1.
    """
    if text == "raster":
        return lambda ids, _: raster_orders(len(ids), grid.num_tokens)
    if text == "random":
        return lambda ids, _: random_orders(len(ids), grid.num_tokens, seed, image_ids=ids)
    if text == "lpd":
        return locality_aware(grid, seed)
    if text.startswith("lpd:"):
        with suppress(argparse.ArgumentTypeError):
            thresholds = [number()(part) for part in text.split(":")[1:]]
            if len(thresholds) <= 2:
                return locality_aware(grid, seed, *thresholds)
        expected = "expected lpd:R or lpd:R:P with finite numbers of at least 0"
        raise ValueError(f"found {text!r}, {expected}")
    if not text.endswith((".json", ".npy")):
        raise ValueError(
            f"found {text!r}, expected random, raster, lpd, lpd:R, lpd:R:P or an order file "
            "(.json, .npy, or a published name)"
        )
    orders = read_orders(text, grid.num_tokens)
    return stored(orders, text, num_images, f"one for each of {num_images} images")


def locality_aware(
    grid: TokenGrid, seed: int, repulsion: float | None = None, proximity: float = 1.0
) -> OrderSource:
    """Make orders on the spot; without `repulsion` at the threshold published for the steps."""

    def make(ids: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
        threshold = repulsion
        if threshold is None:
            threshold = published_repulsion(grid.num_tokens, len(sizes))
        return locality_aware_orders(
            len(ids), sizes, grid.side, proximity, threshold, seed, image_ids=ids
        )

    return make


def stored(orders: np.ndarray, path: str, num_images: int, expected: str) -> OrderSource:
    """Take row i of an order file for image i; `expected` is for the error if there are too few."""
    if len(orders) < num_images:
        raise ValueError(f"{path} holds {len(orders)} orders, expected {expected}")
    return lambda ids, _: orders[ids].astype(np.int64)


def raster_orders(num: int, num_tokens: int) -> np.ndarray:
    """Make orders row by row: (num, N) int64."""
    return np.tile(np.arange(num_tokens), (num, 1))


def training_orders(
    kind: str, num_tokens: int, seed: int, epoch: int, samples: np.ndarray
) -> np.ndarray:
    """Make the orders, one of `TRAINING_ORDERS`, of one visit of samples (B,): (B, N) int64."""
    if kind == "raster":
        return raster_orders(len(samples), num_tokens)
    return streams.permutations("order", seed, epoch, samples, count=num_tokens)


def read_group_sizes(args: argparse.Namespace, num_tokens: int) -> list[int]:
    """Read group sizes by `--generation_steps`, else from `--group_sizes`, or raise UserError."""
    if args.generation_steps is not None:
        with blame("--generation_steps"):
            return group_sizes(num_tokens, args.generation_steps)
    if args.group_sizes is None:
        raise UserError("--generation_steps, --group_sizes: found neither, expected one of them")
    with blame("--group_sizes"):
        return parse_group_sizes(args.group_sizes, num_tokens)


def build_orders(args: argparse.Namespace, grid: TokenGrid, steps: int) -> OrderSource:
    """Make the orders of samples, by `--order` and flags that go with it, or raise UserError."""
    path = args.lpd_order_file
    if args.order != "lpd":
        if path:
            raise UserError(
                f"--lpd_order_file: found {path} with --order {args.order}, expected --order lpd"
            )
        return parse_order(args.order, grid, args.seed, args.num_images)
    if not path:
        return locality_aware(grid, args.seed, args.repulsion_threshold, args.proximity_threshold)
    with blame("--lpd_order_file"):
        expected = f"at least {args.num_images} (--num_images)"
        orders = stored(read_orders(path, grid.num_tokens), path, args.num_images, expected)
    warn_of_steps(path, [steps])
    return orders
