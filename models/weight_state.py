"""Whether copies of a model's weights are still up to date."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class WeightState:
    """Weights as they were when copied.

    Changes are seen by the tensors' version counters; writes through `.data` do not count there.

    Args:
        weights: parameters or buffers of one model, in a fixed order.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        # Aliases, so that no other tensor can get the same address.
        self._aliases = [weight.detach() for weight in weights]
        self._versions = _versions(weights)

    @property
    def versioned(self) -> bool:
        """Whether changes can be told at all."""
        return None not in self._versions

    def same_tensors(self, weights: Sequence[Tensor]) -> bool:
        """Whether `weights` lie where they lay, whatever they hold."""
        return len(weights) == len(self._aliases) and all(
            weight.data_ptr() == alias.data_ptr() and weight.dtype == alias.dtype
            for weight, alias in zip(weights, self._aliases, strict=True)
        )

    def is_current(self, weights: Sequence[Tensor]) -> bool:
        """Whether `weights` are the same tensors, and unchanged as far as can be told."""
        return (
            self.versioned and self._versions == _versions(weights) and self.same_tensors(weights)
        )


def _versions(weights: Sequence[Tensor]) -> list[int | None]:
    """How often each was written to; tensors of inference mode do not count."""
    return [None if weight.is_inference() else weight._version for weight in weights]
