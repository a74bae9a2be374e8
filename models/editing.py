"""Editing: parts of an image are decoded anew, the rest is context (method section 10).

Nothing is trained for it. Tokens outside a mask enter as one known group after the class; those
inside are decoded in locality-aware groups that start next to what is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from models.decoding import UNDECIDED, check_whole, generate, generate_steps
from models.lpd import LPD
from models.sampling import SamplingSettings
from orders.group_sizes import default_steps, remaining_group_sizes
from orders.locality import locality_aware_orders
from orders.sources import published_repulsion


def edit(
    model: LPD,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    labels: torch.Tensor | Sequence[int] | None,
    sampling: SamplingSettings | None = None,
    *,
    num_steps: int | None = None,
    proximity_threshold: float = 1.0,
    repulsion_threshold: float | None = None,
    seed: int = 0,
    image_ids: Sequence[int] | np.ndarray | None = None,
    **options: Any,
) -> torch.Tensor:
    """Decode the masked tokens of B images anew; the others stay as they are.

    Images with equal numbers of masked tokens are decoded together. What becomes of one depends on
    its own tokens, mask, label and id alone, never on the others; an image without masked tokens
    is returned as it is.

    Args:
        model: the network.
        tokens: (B, N) int64 codes, raster order; what stands under the mask does not matter.
        mask: (B, N) bool, True where a token is decoded anew.
        labels: (B,) int64 in [0, class_num); None edits without a class.
        sampling: how codes are drawn, see `generate`.
        num_steps: decoding steps, at most one per masked token and at least two for a whole image;
            by default a share of a whole image's, see `orders.group_sizes.remaining_group_sizes`,
            which also says how many tokens each makes.
        proximity_threshold: of the orders, see `locality_aware_orders`.
        repulsion_threshold: of the orders; by default the one published for whole images.
        seed: names the random streams of orders and draws.
        image_ids: (B,) whole numbers that name the images; `range(B)` if None.
        options: `sampler` and fields of `sampling` by name, as of `generate`.

    Returns:
        (B, N) int64 on the model's device, raster order.

    Raises:
        ValueError: an argument is out of range.
    """
    plan = {
        "num_steps": num_steps,
        "proximity_threshold": proximity_threshold,
        "repulsion_threshold": repulsion_threshold,
    }
    options = {"sampling": sampling, "seed": seed, **options}
    parts = _split(model, tokens, mask, labels, image_ids=image_ids, **plan, **options)
    result = _kept(model, tokens, mask)
    for rows, arguments in parts:
        result[rows] = generate(model, **arguments)
    return result


def edit_steps(
    model: LPD, tokens: torch.Tensor, mask: torch.Tensor, *arguments: Any, **options: Any
) -> Iterator[torch.Tensor]:
    """As `edit`, one step at a time; arguments and errors are the same, see `generate_steps`.

    Returns:
        An iterator over the (B, N) int64 tokens after every step, raster order, -1 where they are
        not decided yet. Images that need fewer steps than others are done sooner. The last of them
        is what `edit` returns; with nothing masked it is the only one.
    """
    parts = _split(model, tokens, mask, *arguments, **options)
    running = [(rows, generate_steps(model, **arguments)) for rows, arguments in parts]
    return _side_by_side(_kept(model, tokens, mask), running)


def _split(
    model: LPD,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    labels: torch.Tensor | Sequence[int] | None,
    sampling: SamplingSettings | None = None,
    *,
    num_steps: int | None = None,
    proximity_threshold: float = 1.0,
    repulsion_threshold: float | None = None,
    seed: int = 0,
    image_ids: Sequence[int] | np.ndarray | None = None,
    **options: Any,
) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """Check what `generate` cannot, and part the images by how many tokens are masked.

    Returns:
        For each number but 0: which images have it (b,), and the arguments of `generate` for them.
    """
    num_tokens, batch_size = model.grid.num_tokens, len(tokens)
    labels = None if labels is None else torch.as_tensor(labels)
    ids = np.arange(batch_size) if image_ids is None else np.asarray(image_ids)
    check_whole("tokens", tokens, (batch_size, num_tokens))
    check_whole("image_ids", ids, (batch_size,))
    if labels is not None:
        check_whole("labels", labels, (batch_size,))
    if mask.shape != tokens.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask: found {mask.dtype} of shape {tuple(mask.shape)}, expected bool "
            f"{tuple(tokens.shape)}"
        )
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"num_steps: found {num_steps}, expected at least 1")
    if repulsion_threshold is None:
        repulsion_threshold = published_repulsion(num_tokens, default_steps(num_tokens))
    tokens, mask = tokens.cpu(), mask.cpu()
    counts = mask.sum(dim=1)
    parts = []
    for count in filter(None, counts.unique().tolist()):
        rows = torch.nonzero(counts == count)[:, 0]
        steps = num_steps and min(num_steps, count)
        sizes = remaining_group_sizes(num_tokens, num_tokens - count, steps)
        # Positions of False, as many in every row.
        known = torch.nonzero(~mask[rows])[:, 1].view(len(rows), num_tokens - count)
        row_ids = ids[rows.numpy()]
        orders = locality_aware_orders(
            len(rows),
            sizes,
            model.grid.side,
            proximity_threshold,
            repulsion_threshold,
            seed,
            image_ids=row_ids,
            known=known.numpy(),
        )
        arguments = {
            "labels": None if labels is None else labels[rows.to(labels.device)],
            "orders": orders,
            "group_sizes": sizes,
            "known": tokens[rows].gather(1, known),
            "sampling": sampling,
            "seed": seed,
            "image_ids": row_ids,
            **options,
        }
        parts.append((rows, arguments))
    return parts


def _kept(model: LPD, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The tokens (B, N) outside the mask, on the model's device."""
    device = model.pos_embed.device
    return tokens.to(device, torch.int64).masked_fill(mask.to(device), UNDECIDED)


def _side_by_side(
    so_far: torch.Tensor, running: list[tuple[torch.Tensor, Iterator[torch.Tensor]]]
) -> Iterator[torch.Tensor]:
    """The tokens of all images (B, N) after each step of every part."""
    if not running:
        yield so_far
    while running:
        unfinished = []
        for rows, steps in running:
            stage = next(steps, None)
            if stage is not None:
                # Not in place: a tensor of a caller's inference mode could not be written to.
                so_far = so_far.index_put((rows,), stage)
                unfinished.append((rows, steps))
        running = unfinished
        if running:
            yield so_far
