"""The page in a real browser."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from app.settings import Settings
from app.studio import Studio
from models.decoding import generate
from models.editing import edit
from models.sampling import SamplingSettings
from orders.sources import ORDERS
from tests.app.server import running_app
from tests.integration.tiny_world import GRID, TinyWorld
from visualization.generation import GREY

if TYPE_CHECKING:
    from tests.app.browser import Sight, Visitor

pytestmark = pytest.mark.slow

SETTINGS = Settings(label=1, count=3, seed=7, steps=8, sampling=SamplingSettings(cfg=10.0))
FIELDS = {"label": "class 1", "count": 3, "seed": 7, "steps": 8, "cfg": 10}
LIBRARY = {"cfg": 10.0, "seed": 7}


def library_images(studio: Studio, tokens: torch.Tensor) -> np.ndarray:
    return np.stack([np.asarray(image) for image in studio.tokenizer.decode_images(tokens)])


def frames_seen(sights: list[Sight]) -> list[np.ndarray]:
    """The images of each state that was seen, (B, S, S, 3) uint8."""
    from tests.app.browser import served

    return [np.stack([served(url) for url in sight.images]) for sight in sights if sight.images]


def run(page: Visitor, button: str = "generate", result: str = "generated") -> list[Sight]:
    page.start(button, result)
    return page.finish(result)


def choose_third(page: Visitor) -> None:
    page.all("#generated-gallery button img")[2].click()
    page.wait(lambda: page.chosen("generated") == [2], "the mark on what was clicked")


def test_generation_is_watched_and_is_the_library_s(
    visit: Callable[[], Visitor], studio: Studio
) -> None:
    page = visit()
    page.enter(**FIELDS)
    sights = run(page)
    expected = generate(studio.model, [1, 1, 1], None, 8, **LIBRARY)
    np.testing.assert_array_equal(page.images("generated"), library_images(studio, expected))

    steps = [frame.images for frame in studio.generate(SETTINGS)]
    found = []
    for images in frames_seen(sights):
        # Images of a state may come one after another: each is of some step.
        for number, image in enumerate(images):
            at = [step for step in range(9) if np.array_equal(steps[step][number], image)]
            assert at, "an image that the library does not show"
            found.append(at[0])
    assert len(set(found) - {0, 8}) >= 3, found
    assert sum(f"step {step} of 8, " in sight.status for sight in sights for step in range(9)) >= 3
    assert " steps in " in sights[-1].status
    assert page.all("#generated-status progress")

    page.click("#more button")
    page.enter(top_k=5, temperature=0.5, top_p=0.9, pause=0)
    sampling = SamplingSettings(cfg=10.0, temperature=0.5, top_k=5, top_p=0.9)
    for order in ("random", "raster"):
        page.click(f"#order input[value={order}]")
        run(page)
        *_, last = studio.generate(replace(SETTINGS, sampling=sampling), order)
        np.testing.assert_array_equal(page.images("generated"), last.images)


def masked_cells(images: np.ndarray) -> torch.Tensor:
    """(N,) bool: which cells are grey all over, of the first of some images."""
    side, stride = GRID.side, GRID.stride
    cells = (images[0] == GREY).all(axis=-1).reshape(side, stride, side, stride)
    return torch.from_numpy(cells.all(axis=(1, 3)).flatten())


def test_a_painted_part_is_made_anew_and_the_rest_kept(
    visit: Callable[[], Visitor], studio: Studio
) -> None:
    page = visit()
    page.enter(**FIELDS)
    run(page)
    assert page.chosen("generated") == [0]
    choose_third(page)
    page.click("#take")
    page.paint((-50, -50), (10, 10), (40, 20), (20, 0))
    page.wait(page.is_painted, "paint")
    page.enter(label="2", seed=9)
    sights = run(page, "edit", "edited")

    source = generate(studio.model, [1, 1, 1], None, 8, **LIBRARY)[2].expand(3, -1)
    mask = masked_cells(frames_seen(sights)[0])
    assert 1 <= mask.sum() <= GRID.num_tokens // 2
    assert mask[5]  # where the brush passed, above and left of the middle
    assert not mask[-1]
    steps = -(-8 * int(mask.sum()) // GRID.num_tokens)
    options = {"num_steps": steps, "cfg": 10.0, "seed": 9}
    tokens = edit(studio.model, source, mask.expand(3, -1), [2, 2, 2], **options)
    assert torch.equal(tokens[:, ~mask], source[:, ~mask])
    np.testing.assert_array_equal(page.images("edited"), library_images(studio, tokens))
    assert f"{steps} steps in " in sights[-1].status

    # A variant can be edited further: it is what stands on the canvas then.
    page.click("#again")
    page.wait(lambda: not page.is_painted(), "a picture without paint")
    assert not page.is_covered()
    page.start("edit", "edited")
    assert page.complaint().endswith(
        "Nothing is painted: please brush over what is to be made anew."
    )

    # Of new images the first is marked, and taken.
    page.open_tab("Generate")
    page.enter(**FIELDS)
    run(page)
    assert page.chosen("generated") == [0]
    page.click("#take")
    page.paint((-50, -50), (10, 10))
    page.click("#keep input")
    run(page, "edit", "edited")
    *_, last = studio.generate(SETTINGS)
    edited = page.images("edited")[:, 12:]  # below the paint
    np.testing.assert_array_equal(edited, np.broadcast_to(last.images[:1, 12:], edited.shape))


def test_an_upload_is_edited_and_keeps_its_pixels(
    visit: Callable[[], Visitor], tmp_path: Path
) -> None:
    from tests.app.browser import colours

    pixels = np.random.default_rng(0).integers(256, size=(16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.new("RGB", (16, 16), "green").save(tmp_path / "other.png")
    page = visit()
    page.open_tab("Edit")
    page.upload(tmp_path / "other.png")
    page.wait(lambda: (0, 128, 0) in colours(page.find("#editor canvas")), "the first picture")
    page.upload(tmp_path / "wide.png")
    page.enter(**FIELDS)
    page.paint((-40, -40), (5, 5))
    assert not page.is_covered()
    page.click("#keep input")
    run(page, "edit", "edited")
    images = page.images("edited")
    middle = np.stack([pixels[:, 4:20]] * 3)
    np.testing.assert_array_equal(images[:, 12:], middle[:, 12:])
    assert (images != middle).any()


def test_a_phone_compares_orders_one_below_the_other(visit: Callable[[str], Visitor]) -> None:
    page = visit("500,900")
    page.open_tab("Compare orders")
    places = [page.find(f"#compare-{order}-gallery").rect for order in ORDERS]
    assert len({place["width"] for place in places}) == 1
    assert len({place["y"] for place in places}) == 3
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 500


def test_the_tab_key_closes_the_list_of_classes(visit: Callable[[], Visitor]) -> None:
    from selenium.webdriver.common.keys import Keys

    page = visit()
    options = "[data-testid=dropdown-option]"
    field = page.find("#label input")
    field.click()
    page.find(options)
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("class 2", Keys.TAB)
    found = page.all(options)
    assert not any(option.is_displayed() for option in found)
    run(page)


def test_errors_are_one_sentence(visit: Callable[[], Visitor], tmp_path: Path) -> None:
    page = visit()
    for fields, sentence in (
        ({"label": "99"}, "Class: found '99', expected 0..2 or the name of one class"),
        ({"label": "<b>x"}, "Class: found '<b>x', expected"),
        ({"label": "0", "seed": "-5"}, "Seed: found -5, expected a whole number from 0 to"),
        ({"seed": "1.5"}, "Seed: found 1.5, expected a whole number from 0 to"),
    ):
        page.enter(**fields)
        page.start("generate", "generated")
        assert sentence in page.complaint()
    assert "Traceback" not in page.driver.page_source
    page.enter(seed=0)
    page.click("#take")
    assert "There is no image yet" in page.complaint()
    page.open_tab("Edit")
    page.start("edit", "edited")
    assert "There is no picture to edit yet" in page.complaint()
    (tmp_path / "bad.png").write_bytes(b"no image")
    page.upload(tmp_path / "bad.png")
    assert "This file cannot be read, expected an image." in page.complaint()


def test_two_visitors_are_served_in_turn_and_never_mix(
    visit: Callable[[], Visitor], studio: Studio
) -> None:
    first, second = visit(), visit()
    wish = replace(SETTINGS, label=2, count=2, seed=8, steps=6)
    first.enter(**FIELDS)
    second.enter(label=2, count=2, seed=8, steps=6, cfg=10)
    second.open_tab("Compare orders")
    names = [f"compare-{order}" for order in ORDERS]
    first.start("generate", "generated")
    second.start("compare", *names)
    seen = [first.finish("generated"), second.finish("compare-raster")]
    *_, last = studio.generate(SETTINGS)
    np.testing.assert_array_equal(first.images("generated"), last.images)
    *_, all_last = studio.compare(wish)
    for name, last in zip(names, all_last, strict=True):
        second.finish(name)
        np.testing.assert_array_equal(second.images(name), last.images)
    assert len({second.find(f"#{name}-gallery").rect["y"] for name in names}) == 1  # one row
    steps = [[sight.at for sight in one if sight.status.startswith("step ")] for one in seen]
    assert steps[0][0] < steps[0][-1] < steps[1][0]  # one after the other

    # What one has generated is not there for the other to edit.
    first.click("#take")
    second.open_tab("Edit")
    second.start("edit", "edited")
    assert "There is no picture to edit yet" in second.complaint()


def start_long(page: Visitor) -> None:
    """Generate for half a minute, and wait for a step."""
    page.click("#more button")
    page.enter(**{**FIELDS, "steps": 16, "pause": 2})
    page.start("generate", "generated")
    wait_for_step(page)


def wait_for_step(page: Visitor, **options: float) -> None:
    page.wait(lambda: [s for s in page.seen() if s.status.startswith("step ")], "a step", **options)


def soon(page: Visitor) -> None:
    """Generate, without waiting for another visitor's half a minute."""
    page.enter(**FIELDS)
    page.start("generate", "generated")
    wait_for_step(page, seconds=15)
    page.finish("generated")


def test_a_visitor_who_stops_or_leaves_makes_room(visit: Callable[[], Visitor]) -> None:
    first, second = visit(), visit()
    start_long(first)
    first.click("#generate-stop")
    first.click("#take")
    assert "This image is not finished" in first.complaint()
    soon(second)
    first.start("generate", "generated")
    first.wait(lambda: [s for s in first.seen() if s.status.startswith("step 1 ")], "a step")
    first.driver.get("about:blank")
    soon(second)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_a_signal_ends_the_program_whatever_it_does(
    packages: None, world: TinyWorld, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    from tests.app.browser import visitor

    files = tmp_path / "files"
    files.mkdir()
    with running_app(world, tmp_path / "log.txt", TMPDIR=str(files)) as app:
        with visitor(app.address, tmp_path / "page.png") as page:
            start_long(page)
            assert list(files.glob("lpd-app-*"))
            app.process.send_signal(number)
            assert app.process.wait(60) == code
        assert not list(files.glob("lpd-app-*"))
    said = app.log.read_text().splitlines()
    ends = ["interrupted"] if number is signal.SIGINT else []
    assert [line.rpartition(" ")[2] for line in said[1:]] == ends


def test_only_what_was_uploaded_is_opened(packages: None, world: TinyWorld, tmp_path: Path) -> None:
    """A visitor who speaks to the program without the page names a picture of this machine."""

    def ask(address: str, content: bytes | None = None) -> str:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{app.address}{address}", content, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read().decode()  # to the end of the stream

    Image.new("RGB", (16, 16)).save(tmp_path / "private.png")
    file = {"path": str(tmp_path / "private.png"), "meta": {"_type": "gradio.FileData"}}
    with running_app(world, tmp_path / "log.txt") as app:
        events = json.loads(ask("/config"))["dependencies"]
        (upload,) = [event["id"] for event in events if event["targets"][0][1] == "upload"]
        wish = {"data": [file], "fn_index": upload, "session_hash": "somebody"}
        ask("/gradio_api/queue/join", json.dumps(wish).encode())
        said = ask("/gradio_api/queue/data?session_hash=somebody")
        assert "it was not uploaded by a user" in said
        assert "image.png" not in said
        with pytest.raises(urllib.error.HTTPError, match="403"):
            ask(f"/gradio_api/file={file['path']}")
