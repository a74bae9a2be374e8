"""The page, in Gradio: fields, tabs and buttons around what `app.studio` can do.

All that a visitor has is in `gr.State`s, of which each session has its own. Whatever decodes takes
turns: one event at a time, over all tabs and visitors.
"""

from __future__ import annotations

import html
import secrets
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from app import events
from app.display import canvas_side
from app.settings import MAX_IMAGES, MAX_PAUSE
from app.studio import Studio
from orders.group_sizes import default_steps
from orders.sources import ORDERS

STYLE = Path(__file__).with_suffix(".css")
THEME = gr.themes.Default(
    primary_hue="blue",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    body_text_color_subdued="*neutral_500",
    block_info_text_color="*neutral_500",
    block_info_text_color_dark="*neutral_400",
)
# Up to this side images are shown with their pixels as squares.
SMALL = 128
# What decodes waits for its turn.
TURNS = {"concurrency_id": "networks", "concurrency_limit": 1}
# What puts a picture on the canvas: Gradio's sign of progress would stay over the second one.
AT_ONCE = {"show_progress": "hidden"}

_GREETING = """# Locality-aware Parallel Decoding
{about}"""
_HOW_TO_EDIT = (
    "Upload an image (its middle square is used) or take one that you have generated, paint over "
    "what to make anew, and choose a class."
)


@dataclass(frozen=True)
class Result:
    """Where images appear, and the states beside them."""

    gallery: gr.Gallery
    status: gr.HTML
    frame: gr.State  # the `Frame` that is shown; None at first
    chosen: gr.State  # the number of the image that was clicked last


def build_page(studio: Studio, about: str) -> gr.Blocks:
    """Build the page; `about` is a line about the model."""
    with gr.Blocks(
        title="LPD", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)
    ) as page:
        gr.Markdown(_GREETING.format(about=html.escape(about)))
        with gr.Row():
            with gr.Column(scale=2, min_width=250):
                fields = _add_fields(studio)
            with gr.Column(scale=5, min_width=420), gr.Tabs(selected="generate") as tabs:
                with gr.Tab("Generate", id="generate"):
                    generated = _add_generation(studio, fields)
                    take = gr.Button("Edit the chosen image", size="md", elem_id="take")
                with gr.Tab("Edit", id="edit"):
                    editing = _add_editing(studio, fields)
                with gr.Tab("Compare orders", id="compare"):
                    _add_comparison(studio, fields)
        take.click(
            lambda frame, number: (*events.take(frame, number), gr.Tabs(selected="edit")),
            [generated.frame, generated.chosen],
            [*editing, tabs],
            **AT_ONCE,
        )
    return page


def _add_fields(studio: Studio) -> dict[str, Any]:
    """What all tabs go by, by name."""
    grid = studio.model.grid
    fields: dict[str, Any] = {
        "label": gr.Dropdown(
            [(f"{label} · {name}", str(label)) for label, name in enumerate(studio.names)],
            value="0",
            allow_custom_value=True,
            label="Class",
            info="By number or name",
            elem_id="label",
        ),
        "count": gr.Slider(1, MAX_IMAGES, 4, step=1, label="Images", elem_id="count"),
    }
    fields["seed"] = gr.Number(0, label="Seed", elem_id="seed")
    another = gr.Button("Another seed", size="sm", elem_id="another")
    another.click(lambda: secrets.randbelow(10**6), None, fields["seed"], show_progress="hidden")
    fields["steps"] = gr.Slider(
        min(2, grid.num_tokens),
        grid.num_tokens,
        default_steps(grid.num_tokens),
        step=1,
        label="Steps",
        info=f"for {grid.num_tokens} tokens",
        elem_id="steps",
    )
    fields["cfg"] = gr.Slider(
        1,
        10,
        3,
        step=0.1,
        label="Guidance, cfg",
        info="1 is none",
        elem_id="cfg",
    )
    with gr.Accordion("Sampling and pace", open=False, elem_id="more"):
        fields |= _add_more_fields(grid.vocab_size)
    return fields


def _add_more_fields(vocab_size: int) -> dict[str, Any]:
    """What few visitors change."""
    return {
        "temperature": gr.Slider(
            0, 2, 1, step=0.05, label="Temperature", info="lower is tamer", elem_id="temperature"
        ),
        "top_k": gr.Slider(
            0, vocab_size, 0, step=1, label="Top-k", info="likeliest codes; 0: all", elem_id="top_k"
        ),
        "top_p": gr.Slider(
            0, 1, 1, step=0.01, label="Top-p", info="likeliest share; 1: all", elem_id="top_p"
        ),
        "pause": gr.Slider(
            0,
            MAX_PAUSE,
            0.2,
            step=0.1,
            label="Pace",
            info="seconds a step, at least",
            elem_id="pause",
        ),
    }


def _add_result(studio: Studio, name: str, label: str, columns: int) -> Result:
    """A line that says how far it is, and the images below it."""
    status = gr.HTML(padding=False, elem_id=f"{name}-status", elem_classes="status")
    gallery = gr.Gallery(
        label=label,
        show_label=False,
        format="png",  # what is shown is exactly what was made
        columns=columns,
        object_fit="contain",
        interactive=False,
        allow_preview=False,
        buttons=[],
        elem_id=f"{name}-gallery",
        elem_classes=["images", *(["small"] if studio.model.grid.image_size <= SMALL else [])],
    )
    result = Result(gallery, status, gr.State(None), gr.State(0))
    gallery.select(events.choose, None, result.chosen, show_progress="hidden")
    return result


def _add_buttons(name: str, label: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        start = gr.Button(label, variant="primary", scale=4, elem_id=name)
        stop = gr.Button("Stop", scale=1, min_width=70, elem_id=f"{name}-stop")
    return start, stop


def _add_generation(studio: Studio, fields: dict[str, Any]) -> Result:
    """The tab that makes images."""
    order = gr.Radio(
        [(name, order) for order, name in ORDERS.items()],
        value="lpd",
        label="Order",
        info="In which the tokens of an image are decoded",
        elem_id="order",
    )
    start, stop = _add_buttons("generate", "Generate")
    result = _add_result(studio, "generated", "Images", columns=4)
    running = start.click(
        partial(events.generate, studio, list(fields)),
        [order, *fields.values()],
        [result.gallery, result.status, result.frame, result.chosen],
        show_progress="minimal",
        show_progress_on=result.status,
        **TURNS,
    )
    stop.click(None, cancels=running)
    return result


def _add_editing(studio: Studio, fields: dict[str, Any]) -> tuple[gr.State, gr.ImageEditor]:
    """The tab that edits; gives where the picture to edit goes, and where it is shown."""
    source = gr.State(None)
    side = canvas_side(studio.model.grid.image_size)
    with gr.Row():
        with gr.Column(min_width=280):
            gr.Markdown(_HOW_TO_EDIT)
            upload = gr.UploadButton(
                "Upload an image",
                size="md",
                file_types=["image"],
                type="filepath",
                elem_id="upload",
            )
            editor = gr.ImageEditor(
                label="Picture",
                show_label=False,
                type="numpy",
                format="png",
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=side // 8, colors=["#e5484d"], color_mode="fixed"),
                eraser=gr.Eraser(default_size=side // 8),
                canvas_size=(side, side),
                fixed_canvas=True,
                buttons=[],
                placeholder="No picture yet",
                elem_id="editor",
            )
            keep = gr.Checkbox(
                False,
                label="Keep the picture's own pixels",
                info="outside of what is painted",
                elem_id="keep",
            )
        with gr.Column(min_width=280):
            start, stop = _add_buttons("edit", "Make variants")
            result = _add_result(studio, "edited", "Variants", columns=2)
            again = gr.Button("Edit the chosen variant", size="md", elem_id="again")
    running = start.click(
        partial(events.edit, studio, list(fields)),
        [source, editor, keep, *fields.values()],
        [result.gallery, result.status, result.frame, result.chosen],
        show_progress="minimal",
        show_progress_on=result.status,
        **TURNS,
    )
    stop.click(None, cancels=running)
    upload.upload(partial(events.upload, studio), upload, [source, editor], **AT_ONCE)
    editor.clear(events.clear, source, editor, **AT_ONCE)
    again.click(events.take, [result.frame, result.chosen], [source, editor], **AT_ONCE)
    return source, editor


def _add_comparison(studio: Studio, fields: dict[str, Any]) -> None:
    """The tab that makes the same images in every order."""
    start, stop = _add_buttons("compare", "Compare")
    galleries, statuses = [], []
    with gr.Row(elem_id="orders"):
        for order, name in ORDERS.items():
            with gr.Column(min_width=140):
                gr.Markdown(f"**{name.capitalize()}**")
                result = _add_result(studio, f"compare-{order}", name.capitalize(), columns=2)
                galleries.append(result.gallery)
                statuses.append(result.status)
    running = start.click(
        partial(events.compare, studio, list(fields)),
        list(fields.values()),
        [*galleries, *statuses],
        show_progress="minimal",
        show_progress_on=statuses,
        **TURNS,
    )
    stop.click(None, cancels=running)
