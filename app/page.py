"""The page, in Gradio: fields, tabs and buttons around what `app.studio` can do.

All that a visitor has is in `gr.State`s, of which each session has its own. Whatever decodes takes
turns: one event at a time, over all tabs and visitors.
"""

import html
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from app import events
from app.display import canvas_of, canvas_side
from app.settings import MAX_IMAGES, MAX_PAUSE
from app.studio import Studio
from orders.group_sizes import default_steps
from orders.sources import ORDERS

STYLE = Path(__file__).with_suffix(".css")
THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(
    body_text_color_subdued="*neutral_500",
    block_info_text_color="*neutral_500",
    block_info_text_color_dark="*neutral_400",
)
# What puts a picture on the canvas: Gradio's sign of progress would stay over the second one.
AT_ONCE = {"show_progress": "hidden"}


class Result(NamedTuple):
    """Where images appear, and the states beside them."""

    gallery: gr.Gallery
    status: gr.HTML
    frame: gr.State  # the `Frame` that is shown; None at first
    chosen: gr.State  # the number of the image that was clicked last


def build_page(studio: Studio, about: str) -> gr.Blocks:
    """Build the page; `about` is a line about the model."""
    options = {"analytics_enabled": False, "fill_width": True, "delete_cache": (3600, 3600)}
    with gr.Blocks(title="LPD", **options) as page:
        gr.Markdown(f"# Locality-aware Parallel Decoding\n{html.escape(about)}")
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
    grid, fields = studio.model.grid, {}

    def slider(name: str, label: str, values: tuple, step: float = 1, info: str = "") -> None:
        style = {"step": step, "label": label, "info": info or None, "elem_id": name}
        fields[name] = gr.Slider(*values, **style)

    choices = [(f"{label} · {name}", str(label)) for label, name in enumerate(studio.names)]
    style = {"label": "Class", "info": "By number or name", "elem_id": "label"}
    fields["label"] = gr.Dropdown(choices, value="0", allow_custom_value=True, **style)
    # The least and the greatest value, and the first.
    slider("count", "Images", (1, MAX_IMAGES, 4))
    fields["seed"] = gr.Number(0, label="Seed", elem_id="seed")
    another = gr.Button("Another seed", size="sm", elem_id="another")
    another.click(lambda: secrets.randbelow(10**6), None, fields["seed"], **AT_ONCE)
    tokens = grid.num_tokens
    steps = (min(2, tokens), tokens, default_steps(tokens))
    slider("steps", "Steps", steps, info=f"for {tokens} tokens")
    slider("cfg", "Guidance, cfg", (1, 10, 3), 0.1, "1 is none")
    with gr.Accordion("Sampling and pace", open=False, elem_id="more"):
        slider("temperature", "Temperature", (0, 2, 1), 0.05, "lower is tamer")
        slider("top_k", "Top-k", (0, grid.vocab_size, 0), info="likeliest codes; 0: all")
        slider("top_p", "Top-p", (0, 1, 1), 0.01, "likeliest share; 1: all")
        slider("pause", "Pace", (0, MAX_PAUSE, 0.2), 0.1, "seconds a step, at least")
    return fields


def _add_result(studio: Studio, name: str, label: str, columns: int) -> Result:
    """A line that says how far it is, and the images below it."""
    status = gr.HTML(padding=False, elem_id=f"{name}-status", elem_classes="status")
    # As PNG what is shown is exactly what was made; small images show their pixels as squares.
    small = ["small"] if studio.model.grid.image_size <= 128 else []
    style = {"object_fit": "contain", "buttons": [], "elem_classes": ["images", *small]}
    style |= {"interactive": False, "allow_preview": False, "show_label": False, "format": "png"}
    gallery = gr.Gallery(label=label, columns=columns, elem_id=f"{name}-gallery", **style)
    result = Result(gallery, status, gr.State(None), gr.State(0))
    gallery.select(events.choose, None, result.chosen, **AT_ONCE)
    return result


def _add_buttons(name: str, label: str) -> Callable[..., None]:
    """Add what starts and stops an event that decodes; the result connects them to it."""
    with gr.Row():
        start = gr.Button(label, variant="primary", scale=4, elem_id=name)
        stop = gr.Button("Stop", scale=1, min_width=70, elem_id=f"{name}-stop")

    def connect(
        event: Callable, inputs: Sequence[Any], outputs: Sequence[Any], lines: Sequence[gr.HTML]
    ) -> None:
        # It waits for its turn, which the lines show.
        style = {"show_progress": "minimal", "show_progress_on": lines}
        turns = {"concurrency_id": "networks", "concurrency_limit": 1}
        stop.click(None, cancels=start.click(event, inputs, outputs, **style, **turns))

    return connect


def _add_generation(studio: Studio, fields: dict[str, Any]) -> Result:
    """The tab that makes images."""
    choices = [(name, order) for order, name in ORDERS.items()]
    style = {"info": "In which the tokens of an image are decoded", "elem_id": "order"}
    order = gr.Radio(choices, value="lpd", label="Order", **style)
    connect = _add_buttons("generate", "Generate")
    result = _add_result(studio, "generated", "Images", columns=4)
    event = partial(events.generate, studio, list(fields))
    connect(event, [order, *fields.values()], list(result), [result.status])
    return result


def _add_editing(studio: Studio, fields: dict[str, Any]) -> tuple[gr.State, gr.ImageEditor]:
    """The tab that edits; gives where the picture to edit goes, and where it is shown."""
    source = gr.State(None)
    side = canvas_side(studio.model.grid.image_size)
    with gr.Row():
        with gr.Column(min_width=280):
            gr.Markdown(
                "Upload an image (its middle square is used) or take one that you have generated, "
                "paint over what to make anew, and choose a class."
            )
            style = {"file_types": ["image"], "type": "filepath", "elem_id": "upload"}
            upload = gr.UploadButton("Upload an image", size="md", **style)
            style = {"layers": False, "sources": (), "transforms": (), "buttons": []}
            style |= {"show_label": False, "elem_id": "editor", "placeholder": "No picture yet"}
            style |= {"canvas_size": (side, side), "fixed_canvas": True}
            style["brush"] = gr.Brush(side // 8, colors=["#e5484d"], color_mode="fixed")
            style["eraser"] = gr.Eraser(side // 8)
            editor = gr.ImageEditor(label="Picture", type="numpy", format="png", **style)
            style = {"info": "outside of what is painted", "elem_id": "keep"}
            keep = gr.Checkbox(label="Keep the picture's own pixels", **style)
        with gr.Column(min_width=280):
            connect = _add_buttons("edit", "Make variants")
            result = _add_result(studio, "edited", "Variants", columns=2)
            again = gr.Button("Edit the chosen variant", size="md", elem_id="again")
    event = partial(events.edit, studio, list(fields))
    connect(event, [source, editor, keep, *fields.values()], list(result), [result.status])
    upload.upload(partial(events.upload, studio), upload, [source, editor], **AT_ONCE)
    # Without paint; the picture stays.
    editor.clear(lambda picture: picture and canvas_of(picture), source, editor, **AT_ONCE)
    again.click(events.take, [result.frame, result.chosen], [source, editor], **AT_ONCE)
    return source, editor


def _add_comparison(studio: Studio, fields: dict[str, Any]) -> None:
    """The tab that makes the same images in every order."""
    connect, results = _add_buttons("compare", "Compare"), []
    with gr.Row(elem_id="orders"):
        for order, name in ORDERS.items():
            with gr.Column(min_width=140):
                gr.Markdown(f"**{name.capitalize()}**")
                results.append(_add_result(studio, f"compare-{order}", name.capitalize(), 2))
    galleries, lines, *_ = map(list, zip(*results, strict=True))
    event = partial(events.compare, studio, list(fields))
    connect(event, list(fields.values()), [*galleries, *lines], lines)
