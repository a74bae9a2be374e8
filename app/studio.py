"""What the page can do, without the page: settings -> frames, one after every decoding step.

Nothing here remembers anything between two calls.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from app.settings import Settings
from dataset.edit_canvas import Canvas, fit
from models.decoding import UNDECIDED, generate_steps
from models.editing import edit_steps
from models.lpd import LPD
from models.sampling import SamplingSettings
from orders.group_sizes import group_sizes, remaining_group_sizes
from orders.sources import ORDERS, parse_order
from tokenizers.encoding import encode
from tokenizers.vq_model import VQModel
from visualization.generation import images_so_far

# Pixels outside a mask over which a variant fades into the original, where that is kept: at most,
# and as a share of the image's side.
_FEATHER, _FEATHER_SHARE = 4, 1 / 64


@dataclass(frozen=True, eq=False)
class Picture:
    """An image that can be edited."""

    pixels: np.ndarray  # (S, S, 3) uint8
    tokens: torch.Tensor  # (N,) int64 on the CPU, raster order


@dataclass(frozen=True, eq=False)
class Frame:
    """Some images in the middle of being decoded."""

    images: np.ndarray  # (B, S, S, 3) uint8, undecided cells grey
    tokens: torch.Tensor  # (B, N) int64 on the CPU, raster order, -1 where undecided
    step: int  # done
    steps: int  # in all
    seconds: float  # that the network has taken so far, drawing not counted

    @property
    def done(self) -> bool:
        """All tokens are decided."""
        return self.step == self.steps

    def picture(self, number: int) -> Picture:
        """Return one of the images; `ValueError` if it is not finished or not there."""
        if not self.done:
            raise ValueError("This image is not finished, please wait for its last step.")
        if not 0 <= number < len(self.images):
            raise ValueError(f"There is no image {number + 1} among these {len(self.images)}.")
        return Picture(self.images[number], self.tokens[number])


@dataclass(frozen=True, eq=False)
class Studio:
    """A model and its tokenizer, on one device in eval mode, to be played with."""

    model: LPD
    tokenizer: VQModel
    names: Sequence[str]
    bf16: bool = False
    # Whoever has it runs the networks, for one step at most: an event that was stopped ends its
    # step beside the next.
    turn: threading.Lock = field(default_factory=threading.Lock)

    def generate(self, settings: Settings, order: str = "lpd") -> Iterator[Frame]:
        """Generate as `models.decoding.generate` does: K + 1 frames, the first without a token.

        Raises:
            ValueError: there is no such order, or no group sizes for that many steps.
        """
        if order not in ORDERS:
            raise ValueError(f"Order: found {order!r:.40}, expected one of {', '.join(ORDERS)}")
        grid, ids = self.model.grid, np.arange(settings.count)
        sizes = group_sizes(grid.num_tokens, settings.steps)
        orders = parse_order(order, grid, settings.seed, settings.count)(ids, sizes)
        labels = self._labels(settings)
        states = generate_steps(
            self.model, labels, orders, sizes, settings.sampling, seed=settings.seed
        )
        nothing = torch.full((settings.count, grid.num_tokens), UNDECIDED)
        return self._frames(nothing, states, len(sizes))

    def compare(self, settings: Settings) -> Iterator[list[Frame]]:
        """Generate the same images in every order of `ORDERS`, side by side."""
        running = [self.generate(settings, order) for order in ORDERS]
        for step in range(settings.steps + 1):
            # Each in turn is the first, which takes longer after a pause than the others.
            turns = [(step + turn) % len(running) for turn in range(len(running))]
            frames = {number: next(running[number]) for number in turns}
            yield [frames[number] for number in range(len(running))]

    def warm_up(self) -> None:
        """Compile and prepare what the first visitor would wait for."""
        steps = min(2, self.model.grid.num_tokens)
        for _ in self.compare(Settings(0, 1, 0, steps, SamplingSettings(cfg=2.0))):
            pass

    def read_picture(self, image: Image.Image) -> Picture:
        """Cut the middle square of any RGB image in the model's size, and encode it."""
        nothing = np.zeros((image.height, image.width), dtype=bool)
        pixels = fit(image, nothing, self.model.grid.image_size).pixels
        batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        with self.turn:
            return Picture(pixels, encode(self.tokenizer, batch)[0].cpu())

    def edit(
        self, picture: Picture, painted: np.ndarray, settings: Settings, keep_pixels: bool = False
    ) -> Iterator[Frame]:
        """Make variants as `models.editing.edit` does; the first frame has no new token.

        Args:
            painted: (H, W) bool, H = W of any size. A token is made anew if any of its cell is
                painted, in as large a share of `settings.steps` as is made anew, rounded up.
            keep_pixels: outside of what is painted keep the picture itself, bit for bit beyond a
                narrow seam, instead of what the tokenizer makes of its tokens.

        Raises:
            ValueError: nothing is painted.
        """
        if not painted.any():
            raise ValueError("Nothing is painted: please brush over what is to be made anew.")
        grid = self.model.grid
        canvas = fit(Image.fromarray(picture.pixels), painted, grid.image_size)
        mask = torch.from_numpy(canvas.token_mask(grid.stride))
        masked = int(mask.sum())
        steps = min(masked, math.ceil(settings.steps * masked / grid.num_tokens))
        sizes = remaining_group_sizes(grid.num_tokens, grid.num_tokens - masked, steps)
        tokens = picture.tokens.expand(settings.count, -1)
        mask = mask.expand(settings.count, -1)
        labels, options = self._labels(settings), {"num_steps": steps, "seed": settings.seed}
        states = edit_steps(self.model, tokens, mask, labels, settings.sampling, **options)
        kept = tokens.masked_fill(mask, UNDECIDED)
        return self._frames(kept, states, len(sizes), canvas if keep_pixels else None)

    @property
    def _device(self) -> torch.device:
        return self.model.pos_embed.device

    def _labels(self, settings: Settings) -> torch.Tensor:
        return torch.full((settings.count,), settings.label)

    def _frames(
        self,
        start: torch.Tensor,
        states: Iterator[torch.Tensor],
        steps: int,
        canvas: Canvas | None = None,
    ) -> Iterator[Frame]:
        """Yield a frame of the tokens (B, N) at the start, and one of each state that follows."""
        tokens, seconds = start, 0.0
        for step in range(steps + 1):
            # not around `yield`: the next frame may be asked for by another thread
            with self.turn:
                if step:
                    began = time.perf_counter()
                    with torch.autocast(self._device.type, torch.bfloat16, enabled=self.bf16):
                        tokens = next(states).cpu()  # which waits for the GPU
                    seconds += time.perf_counter() - began
                images = images_so_far(self.tokenizer, tokens).cpu().numpy()
            if canvas is not None:
                images = canvas.composite(images, feather(self.model.grid.image_size))
            yield Frame(images, tokens, step, steps, seconds)


def feather(size: int) -> int:
    """Pixels over which a seam fades in an image of this side."""
    return min(_FEATHER, round(size * _FEATHER_SHARE))
