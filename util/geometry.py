"""The one place that relates image size, tokenizer stride and number of tokens."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenGrid:
    """A square grid of code indices."""

    image_size: int  # side of the image, pixels
    stride: int  # pixels per token along a side (16 for the published tokenizer)
    vocab_size: int  # number of codes; indices lie in [0, vocab_size)

    def __post_init__(self) -> None:
        if min(self.image_size, self.stride, self.vocab_size) < 1:
            raise ValueError(f"expected positive sizes, found {self}")
        if self.image_size % self.stride:
            size = f"image size {self.image_size}"
            raise ValueError(f"{size} is not a multiple of the tokenizer's stride {self.stride}")

    @property
    def side(self) -> int:
        """Tokens along one side."""
        return self.image_size // self.stride

    @property
    def num_tokens(self) -> int:
        """Tokens of one image, N."""
        return self.side**2


def grid_side(num_tokens: int) -> int:
    """Return the side of a square grid of so many positions; a `ValueError` if there is none."""
    side = math.isqrt(max(num_tokens, 0))
    if side < 1 or side * side != num_tokens:
        raise ValueError(f"found {num_tokens} positions, expected a square number of them")
    return side
