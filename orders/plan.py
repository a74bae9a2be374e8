"""A generation plan: in which order, and how many at a time, the tokens of images are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from orders.group_sizes import validate_group_sizes
from orders.order_file import validate_orders


@dataclass(frozen=True, eq=False)
class GenerationPlan:
    """Orders and group sizes that fit each other; make one with `build`, which checks them.

    Attributes:
        orders: (B, N) int64; row b lists the raster positions of image b in generation order.
        group_sizes: K sizes that sum to N - num_known; step k makes the next `group_sizes[k]`
            positions.
        num_known: M, how many positions every order begins with whose tokens are known.
    """

    orders: torch.Tensor
    group_sizes: tuple[int, ...]
    num_known: int = 0

    @classmethod
    def build(
        cls, orders: Any, group_sizes: Sequence[int], num_tokens: int, num_known: int = 0
    ) -> GenerationPlan:
        """Check orders and group sizes once: whoever is handed the plan may trust it.

        Args:
            orders: (B, N) whole numbers: tensor (the plan stays on its device), array or lists.
            group_sizes: positive whole numbers that sum to N - num_known; none if all is known.
            num_tokens: N, the positions of the grid.
            num_known: M, in 0..N.

        Raises:
            ValueError: a row does not hold every position once, or the sizes do not sum to what
                is not known.
        """
        is_tensor = isinstance(orders, torch.Tensor)
        checked = validate_orders(orders.cpu().numpy() if is_tensor else orders, num_tokens)
        if not 0 <= num_known <= num_tokens:
            raise ValueError(f"found {num_known} known tokens, expected 0 to {num_tokens}")
        validate_group_sizes(group_sizes, num_tokens - num_known)
        # Always a copy: later changes to what the caller holds must not reach the plan.
        copy = torch.tensor(checked.astype("int64"), device=orders.device if is_tensor else None)
        return cls(copy, tuple(int(size) for size in group_sizes), num_known)

    @property
    def batch_size(self) -> int:
        """Number of images, B."""
        return self.orders.shape[0]

    @property
    def num_tokens(self) -> int:
        """Positions of one image, N."""
        return self.orders.shape[1]

    @property
    def num_steps(self) -> int:
        """Number of decoding steps, K."""
        return len(self.group_sizes)

    def steps(self) -> Iterator[tuple[int, int]]:
        """Where each step's positions start and stop in generation order."""
        start = self.num_known
        for size in self.group_sizes:
            yield start, start + size
            start += size
