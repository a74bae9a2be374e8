"""What frames and pictures look like on the page, as far as that needs no Gradio."""

import math
import secrets
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from app.studio import Frame, Picture
from models.decoding import UNDECIDED

T = TypeVar("T")


def paced(frames: Iterator[T], seconds: float) -> Iterator[T]:
    """Yield the same, none sooner than so many seconds after the one before: eyes want time."""
    shown = -math.inf
    for frame in frames:
        time.sleep(max(0, shown + seconds - time.monotonic()))
        shown = time.monotonic()
        yield frame


def status(frame: Frame) -> str:
    """Say how far a frame is: a bar, and the time, or steps and tokens (of the first image)."""
    words = f"{frame.steps} steps in {frame.seconds:.2f} s"
    if not frame.done:
        decided, tokens = int((frame.tokens[0] != UNDECIDED).sum()), frame.tokens.shape[1]
        words = f"step {frame.step} of {frame.steps}, {decided} of {tokens} tokens"
    bar = f'<progress max="{frame.steps}" value="{frame.step}"></progress>'
    return f'{bar}<span title="drawing not counted">{words}</span>'


def canvas_side(size: int) -> int:
    """Return the side of the canvas for images of side `size`: its largest multiple up to 512."""
    return size * max(1, 512 // size)


def as_image(pixels: np.ndarray) -> Image.Image:
    """Make an image of (H, W, 3) uint8 for Gradio, a file of its own each time.

    Gradio names a file after its content and writes it every time: with a mark in each, none is
    written while a browser reads it.
    """
    image = Image.fromarray(pixels)
    image.info["mark"] = secrets.token_hex(8)
    return image


def canvas_of(picture: Picture) -> dict[str, Any]:
    """Put a picture on a canvas without paint, as `gr.ImageEditor` wants it."""
    times = canvas_side(len(picture.pixels)) // len(picture.pixels)
    large = as_image(picture.pixels.repeat(times, axis=0).repeat(times, axis=1))
    return {"background": large, "layers": [], "composite": large}


def painted(canvas: dict[str, Any] | None) -> np.ndarray:
    """Return (H, W) bool, True where paint on the canvas of `gr.ImageEditor` is half opaque."""
    layers = [layer[..., 3] >= 128 for layer in (canvas or {}).get("layers", [])]
    return np.logical_or.reduce(layers) if layers else np.zeros((1, 1), dtype=bool)
