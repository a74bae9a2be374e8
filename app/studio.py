"""What the page can do, without the page: settings -> frames, one after every decoding step."""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from app.settings import Settings
from dataset.edit_canvas import Canvas, fit
from models.decoding import UNDECIDED, generate_steps
from models.editing import edit_steps
from models.lpd import LPD
from models.sampling import SamplingSettings
from orders.group_sizes import group_sizes
from orders.sources import ORDERS, parse_order
from tokenizers.encoding import encode
from tokenizers.vq_model import VQModel
from visualization.generation import images_so_far


@dataclass(frozen=True, eq=False)
class Picture:
    """An image that can be edited."""

    pixels: np.ndarray  # (S, S, 3) uint8
    tokens: Tensor  # (N,) int64 on the CPU, raster order


@dataclass(frozen=True, eq=False)
class Frame:
    """Some images in the middle of being decoded."""

    images: np.ndarray  # (B, S, S, 3) uint8, undecided cells grey
    tokens: Tensor  # (B, N) int64 on the CPU, raster order, -1 where undecided
    step: int  # done
    steps: int  # in all
    seconds: float  # that the network has taken so far, drawing not counted

    @property
    def done(self) -> bool:
        return self.step == self.steps

    def picture(self, number: int) -> Picture:
        """Return one of the images; a `ValueError` if it is not finished."""
        if not self.done:
            raise ValueError("This image is not finished, please wait for its last step.")
        return Picture(self.images[number], self.tokens[number])


@dataclass(frozen=True, eq=False)
class Studio:
    """A model and its tokenizer, on one device in eval mode, to be played with."""

    model: LPD
    tokenizer: VQModel
    names: Sequence[str]  # of the classes
    bf16: bool = False
    # Whoever has it runs the networks, for one step at most: an event that was stopped ends its
    # step beside the next.
    turn: threading.Lock = field(default_factory=threading.Lock)

    def generate(self, settings: Settings, order: str = "lpd") -> Iterator[Frame]:
        """Generate as `models.decoding.generate` does: K + 1 frames, the first without a token.

        A `ValueError` if there is no such order, or no group sizes for that many steps.
        """
        if order not in ORDERS:
            raise ValueError(f"Order: found {order!r:.40}, expected one of {', '.join(ORDERS)}")
        grid, ids = self.model.grid, np.arange(settings.count)
        sizes = group_sizes(grid.num_tokens, settings.steps)
        orders = parse_order(order, grid, settings.seed, settings.count)(ids, sizes)
        given = [settings.label] * settings.count, orders, sizes, settings.sampling
        states = generate_steps(self.model, *given, seed=settings.seed)
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

        A token is made anew if any of its cell is `painted`, (H, H) bool of any size, in its share
        of `settings.steps`. `keep_pixels` keeps the picture itself elsewhere, but for a narrow
        seam, instead of its tokens' image. A `ValueError` if nothing is painted.
        """
        if not painted.any():
            raise ValueError("Nothing is painted: please brush over what is to be made anew.")
        grid = self.model.grid
        canvas = fit(Image.fromarray(picture.pixels), painted, grid.image_size)
        mask = torch.from_numpy(canvas.token_mask(grid.stride)).expand(settings.count, -1)
        steps = math.ceil(settings.steps * int(mask[0].sum()) / grid.num_tokens)
        tokens = picture.tokens.expand(settings.count, -1)
        given = tokens, mask, [settings.label] * settings.count, settings.sampling
        states = edit_steps(self.model, *given, seed=settings.seed, num_steps=steps)
        kept = tokens.masked_fill(mask, UNDECIDED)
        return self._frames(kept, states, steps, canvas if keep_pixels else None)

    def _frames(
        self, tokens: Tensor, states: Iterator[Tensor], steps: int, canvas: Canvas | None = None
    ) -> Iterator[Frame]:
        """Yield a frame of the tokens (B, N) at the start, and one of each state that follows."""
        device, size, seconds = self.model.pos_embed.device, self.model.grid.image_size, 0.0
        for step in range(steps + 1):
            # not around `yield`: the next frame may be asked for by another thread
            with self.turn:
                if step:
                    began = time.perf_counter()
                    with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                        tokens = next(states).cpu()  # which waits for the GPU
                    seconds += time.perf_counter() - began
                images = images_so_far(self.tokenizer, tokens).cpu().numpy()
            if canvas is not None:
                images = canvas.composite(images, feather=min(4, round(size / 64)))
            yield Frame(images, tokens, step, steps, seconds)
