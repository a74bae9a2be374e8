"""A generation plan: in which order, and how many at a time, the tokens of images are made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch

from orders.group_sizes import validate_group_sizes
from orders.order_file import validate_orders


@dataclass(frozen=True, eq=False)
class GenerationPlan:
    """Orders and group sizes that fit each other; make one with `build`, which checks them."""

    orders: torch.Tensor  # (B, N) int64; row b: raster positions of image b in generation order
    group_sizes: tuple[int, ...]  # K sizes that sum to N - num_known
    num_known: int = 0  # how many positions every order begins with whose tokens are known

    @classmethod
    def build(
        cls, orders: Any, group_sizes: Sequence[int], num_tokens: int, num_known: int = 0
    ) -> "GenerationPlan":
        """Check orders and group sizes once: whoever is handed the plan may trust it.

        A tensor of orders stays on its device. A ValueError if a row does not hold every position
        once, or the sizes do not sum to N - num_known.
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
    def num_tokens(self) -> int:
        return self.orders.shape[1]

    def steps(self) -> Iterator[tuple[int, int]]:
        """Return where each step's positions start and stop in generation order."""
        return pairwise(accumulate(self.group_sizes, initial=self.num_known))
