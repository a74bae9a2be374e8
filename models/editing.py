"""Editing: tokens under a mask are decoded anew, the others are context (method section 10)."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.decoding import UNDECIDED, check_whole, generate, generate_steps
from models.lpd import LPD
from models.sampling import SamplingSettings
from orders.group_sizes import default_steps, remaining_group_sizes
from orders.locality import locality_aware_orders
from orders.sources import published_repulsion


def edit(
    model: LPD,
    tokens: Tensor,
    mask: Tensor,
    labels: Tensor | Sequence[int] | None,
    sampling: SamplingSettings | None = None,
    **options: Any,
) -> Tensor:
    """Decode the masked tokens of B images anew: (B, N) int64 on the model's device, raster order.

    Of `tokens` (B, N) int64, raster order, those where `mask` (B, N) bool is True are replaced, for
    `labels` (B,) in [0, class_num) or without a class. What becomes of an image depends on its own
    tokens, mask, label and id alone, never on the others. A ValueError names an argument that is
    out of range. `options`: `num_steps`, at most one per masked token and at least two for a whole
    image, by default a share of a whole image's (`orders.group_sizes.remaining_group_sizes`);
    `proximity_threshold` (1) and `repulsion_threshold` (by default as published for whole images)
    of the orders; `seed`, `image_ids`, `sampler` and fields of `sampling` as of `generate`.
    """
    result, parts = _split(model, tokens, mask, labels, sampling, **options)
    for rows, given in parts:
        result[rows] = generate(model, **given)
    return result


def edit_steps(model: LPD, *arguments: Any, **options: Any) -> Iterator[Tensor]:
    """As `edit`, one step at a time; arguments and errors are the same, see `generate_steps`.

    Yields the (B, N) tokens after every step, -1 where they are not decided yet; with nothing
    masked, once. Images that need fewer steps than others are done sooner.
    """
    kept, parts = _split(model, *arguments, **options)
    running = [(rows, generate_steps(model, **given)) for rows, given in parts]

    def side_by_side(so_far: Tensor) -> Iterator[Tensor]:
        if not running:
            yield so_far
        for stages in zip_longest(*(steps for _, steps in running)):
            for (rows, _), stage in zip(running, stages, strict=True):
                if stage is not None:
                    # Not in place: a tensor of a caller's inference mode could not be written to.
                    so_far = so_far.index_put((rows,), stage)
            yield so_far

    return side_by_side(kept)


def _split(
    model: LPD,
    tokens: Tensor,
    mask: Tensor,
    labels: Tensor | Sequence[int] | None,
    sampling: SamplingSettings | None = None,
    *,
    num_steps: int | None = None,
    proximity_threshold: float = 1.0,
    repulsion_threshold: float | None = None,
    seed: int = 0,
    image_ids: Sequence[int] | np.ndarray | None = None,
    **options: Any,
) -> tuple[Tensor, list[tuple[Tensor, dict[str, Any]]]]:
    """Check what `generate` cannot, and part the images by how many tokens are masked.

    Returns the tokens (B, N) outside the mask, on the model's device, and for each number but 0
    which images have it (b,), with the arguments of `generate` for them.
    """
    num_tokens, batch_size = model.grid.num_tokens, len(tokens)
    labels = None if labels is None else torch.as_tensor(labels)
    ids = np.arange(batch_size) if image_ids is None else np.asarray(image_ids)
    check_whole("tokens", tokens, (batch_size, num_tokens))
    check_whole("image_ids", ids, (batch_size,))
    if labels is not None:
        check_whole("labels", labels, (batch_size,))
    if mask.shape != tokens.shape or mask.dtype != torch.bool:
        found = f"{mask.dtype} of shape {tuple(mask.shape)}"
        raise ValueError(f"mask: found {found}, expected bool {tuple(tokens.shape)}")
    if num_steps is not None and not (isinstance(num_steps, int) and num_steps >= 1):
        raise ValueError(f"num_steps: found {num_steps}, expected a whole number of at least 1")
    if repulsion_threshold is None:
        repulsion_threshold = published_repulsion(num_tokens, default_steps(num_tokens))
    thresholds = proximity_threshold, repulsion_threshold
    tokens, mask = tokens.to("cpu", torch.int64), mask.cpu()
    kept = tokens.masked_fill(mask, UNDECIDED).to(model.pos_embed.device)
    counts, parts = mask.sum(dim=1), []
    for count in filter(None, counts.unique().tolist()):
        rows = torch.nonzero(counts == count)[:, 0]
        num, row_ids = len(rows), ids[rows.numpy()]
        steps = num_steps and min(num_steps, count)
        sizes = remaining_group_sizes(num_tokens, num_tokens - count, steps)
        # Positions of False, as many in every row.
        known = torch.nonzero(~mask[rows])[:, 1].view(num, num_tokens - count)
        given = {"known": tokens[rows].gather(1, known), "group_sizes": sizes, "seed": seed}
        given["orders"] = locality_aware_orders(
            num, sizes, model.grid.side, *thresholds, seed, row_ids, known.numpy()
        )
        given["labels"] = None if labels is None else labels[rows.to(labels.device)]
        parts.append((rows, dict(**options, **given, image_ids=row_ids, sampling=sampling)))
    return kept, parts
