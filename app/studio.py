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
    """An image that can be edited.

    Attributes:
        pixels: (S, S, 3) uint8.
        tokens: (N,) int64 on the CPU, raster order.
    """

    pixels: np.ndarray
    tokens: torch.Tensor


@dataclass(frozen=True, eq=False)
class Frame:
    """Some images in the middle of being decoded.

    Attributes:
        images: (B, S, S, 3) uint8, undecided cells grey.
        tokens: (B, N) int64 on the CPU, raster order, -1 where undecided.
        step: steps done.
        steps: steps in all.
        seconds: that the network has taken so far, drawing not counted.
    """

    images: np.ndarray
    tokens: torch.Tensor
    step: int
    steps: int
    seconds: float

    @property
    def done(self) -> bool:
        """Whether all tokens are decided."""
        return self.step == self.steps

    def picture(self, number: int) -> Picture:
        """One of the images.

        Raises:
            ValueError: it is not finished, or there is no such image.
        """
        if not self.done:
            raise ValueError("This image is not finished, please wait for its last step.")
        if not 0 <= number < len(self.images):
            raise ValueError(f"There is no image {number + 1} among these {len(self.images)}.")
        return Picture(self.images[number], self.tokens[number])


@dataclass(frozen=True, eq=False)
class Studio:
    """A model that can be played with.

    Attributes:
        model, tokenizer: on one device, in eval mode.
        names: of the model's classes.
        bf16: run the network under bfloat16 autocast.
        turn: whoever has it runs the networks, for one step at most: an event that was stopped
            ends its step beside the next.
    """

    model: LPD
    tokenizer: VQModel
    names: Sequence[str]
    bf16: bool = False
    turn: threading.Lock = field(default_factory=threading.Lock)

    def generate(self, settings: Settings, order: str = "lpd") -> Iterator[Frame]:
        """Images of a class, as `models.decoding.generate` makes them.

        Args:
            settings: what to generate.
            order: one of `ORDERS`; of the settings' seed and the images' numbers.

        Returns:
            An iterator over K + 1 frames, the first of them without a token.

        Raises:
            ValueError: there is no such order, or no group sizes for that many steps.
        """
        if order not in ORDERS:
            raise ValueError(f"Order: found {order!r:.40}, expected one of {', '.join(ORDERS)}")
        grid, ids = self.model.grid, np.arange(settings.count)
        sizes = group_sizes(grid.num_tokens, settings.steps)
        orders = parse_order(order, grid, settings.seed, settings.count)(ids, sizes)
        states = generate_steps(
            self.model,
            self._labels(settings),
            orders,
            sizes,
            settings.sampling,
            seed=settings.seed,
        )
        nothing = torch.full((settings.count, grid.num_tokens), UNDECIDED)
        return self._frames(nothing, states, len(sizes))

    def compare(self, settings: Settings) -> Iterator[list[Frame]]:
        """The same images in every order of `ORDERS`, side by side; see `generate`."""
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
        """The middle square of any RGB image, in the model's size, and its tokens."""
        nothing = np.zeros((image.height, image.width), dtype=bool)
        pixels = fit(image, nothing, self.model.grid.image_size).pixels
        batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        with self.turn:
            return Picture(pixels, encode(self.tokenizer, batch)[0].cpu())

    def edit(
        self, picture: Picture, painted: np.ndarray, settings: Settings, keep_pixels: bool = False
    ) -> Iterator[Frame]:
        """Variants of a picture, as `models.editing.edit` makes them.

        Args:
            picture: what to edit.
            painted: (H, W) bool, True where to make it anew; H = W of any size. A token is made
                anew if any of its cell is painted.
            settings: `steps` are those of a whole image; an edit takes the share of them that it
                makes anew, rounded up.
            keep_pixels: outside of what is painted keep the picture itself, bit for bit beyond a
                narrow seam, instead of what the tokenizer makes of its tokens.

        Returns:
            An iterator over frames, the first of them without a new token.

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
        states = edit_steps(
            self.model,
            tokens,
            mask,
            self._labels(settings),
            settings.sampling,
            num_steps=steps,
            seed=settings.seed,
        )
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
        """A frame of the tokens (B, N) at the start, and one of each state that follows."""
        tokens, seconds = start, 0.0
        for step in range(steps + 1):
            # Not around `yield`: the next frame may be asked for by another thread.
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
