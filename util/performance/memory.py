"""How much fits into a device's memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from util.errors import is_out_of_memory


def largest_that_fits(attempt: Callable[[int], object], too_large: int) -> int:
    """The largest size whose attempt does not run out of memory; 0 if none fits.

    Args:
        attempt: does the work at a size; its result is dropped.
        too_large: a size known not to fit; smaller ones are tried by bisection.
    """
    fits = 0
    while too_large - fits > 1:
        size = (fits + too_large) // 2
        try:
            attempt(size)
            fits = size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            too_large = size
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return fits
