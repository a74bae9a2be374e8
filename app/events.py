"""What happens on the page's buttons: values of fields -> what is shown.

Handlers keep nothing between two calls; what goes wrong ends in one sentence on the page.
"""

import html
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr
from PIL import Image

from app.display import as_image, canvas_of, paced, painted, status
from app.settings import MAX_PAUSE, Settings, number, read_settings
from app.studio import Frame, Picture, Studio
from dataset.pictures import open_rgb
from util.errors import is_out_of_memory

logger = logging.getLogger("lpd")

Canvas = dict[str, Any]  # as `gr.ImageEditor` has it


@contextmanager
def one_sentence() -> Iterator[None]:
    """Errors of the block become one sentence on the page; bugs go to the log as well."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError):
            sentence = " ".join(str(error).split())
        elif is_out_of_memory(error):
            sentence = "The memory does not suffice: please ask for fewer images."
        else:
            logger.exception("ended by an error")
            sentence = "Something went wrong; the log of the program says what."
        text = html.escape(sentence, quote=False)
        raise gr.Error(text, duration=10, print_exception=False) from None


def generate(studio: Studio, names: Sequence[str], order: str, *values: Any) -> Iterator[tuple]:
    """Show the images after every step, for the values of the named fields."""
    with one_sentence():
        settings, pause = read(studio, names, values)
        yield from map(show, paced(studio.generate(settings, order), pause))


def compare(studio: Studio, names: Sequence[str], *values: Any) -> Iterator[list[Any]]:
    """Show the images of every order after every step, then what is known of each."""
    with one_sentence():
        settings, pause = read(studio, names, values)
        for frames in paced(studio.compare(settings), pause):
            yield [*map(pictures, frames), *map(status, frames)]


def edit(
    studio: Studio,
    names: Sequence[str],
    picture: Picture | None,
    canvas: Canvas | None,
    keep_pixels: bool,
    *values: Any,
) -> Iterator[tuple]:
    """Show the variants of a picture with paint on its canvas after every step."""
    with one_sentence():
        settings, pause = read(studio, names, values)
        if picture is None:
            raise ValueError(
                "There is no picture to edit yet: upload one, or take one that you have generated."
            )
        frames = studio.edit(picture, painted(canvas), settings, keep_pixels)
        yield from map(show, paced(frames, pause))


def upload(studio: Studio, path: str) -> tuple[Picture, Canvas]:
    """Make an image file the picture to edit, and show it on the canvas."""
    with one_sentence():
        try:
            image = open_rgb(path, upright=True)
        except ValueError as error:
            raise ValueError("This file cannot be read, expected an image.") from error
        picture = studio.read_picture(image)
        return picture, canvas_of(picture)


def take(frame: Frame | None, number: int) -> tuple[Picture, Canvas]:
    """Make an image that was generated the picture to edit, and show it on the canvas."""
    with one_sentence():
        if frame is None:
            raise ValueError("There is no image yet: please make some first.")
        picture = frame.picture(min(number, len(frame.images) - 1))
        return picture, canvas_of(picture)


def choose(event: gr.SelectData) -> int:
    """Return the number of the image that was clicked."""
    return int(event.index)


def read(studio: Studio, names: Sequence[str], values: Sequence[Any]) -> tuple[Settings, float]:
    """Check the fields: the settings, and the seconds for which to show a step."""
    fields = dict(zip(names, values, strict=True))
    pause = number("Pace", fields.pop("pause"), 0, MAX_PAUSE)
    return read_settings(fields, studio.names, studio.model.grid), pause


def show(frame: Frame) -> tuple:
    """Return values for a gallery, its line, its frame and the number of its chosen image."""
    if frame.step:
        return pictures(frame), status(frame), frame, gr.skip()
    # Left alone, Gradio goes on marking the number that was chosen of the images before.
    return gr.Gallery(pictures(frame), selected_index=0), status(frame), frame, 0


def pictures(frame: Frame) -> list[Image.Image]:
    """The images, for a gallery."""
    return [as_image(image) for image in frame.images]
