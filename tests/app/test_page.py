"""The page in a real browser."""

# ruff: noqa: E402

import itertools
import json
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")
KEYS = pytest.importorskip("selenium.webdriver.common.keys").Keys

from app.settings import Settings
from app.studio import Studio
from models.sampling import SamplingSettings
from orders.sources import ORDERS
from tests.app.browser import Visitor, running_app, served, visitor
from tests.apt import MissingProgramsError, require_programs
from tests.integration.tiny_world import GRID, TinyWorld
from visualization.generation import GREY

pytestmark = pytest.mark.slow

SETTINGS = Settings(label=1, count=3, seed=7, steps=8, sampling=SamplingSettings(cfg=10.0))
FIELDS = {"label": "class 1", "count": 3, "seed": 7, "steps": 8, "cfg": 10}


@pytest.fixture(scope="session")
def browser() -> None:
    """Skips the test where there is no browser and none can be installed."""
    try:
        require_programs(("chromium", "chromedriver"), ("chromium", "chromium-driver"))
    except MissingProgramsError as error:
        pytest.skip(f"no browser on this machine: {error}")


@pytest.fixture(scope="session")
def address(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of the small model, for all tests."""
    log = tmp_path_factory.mktemp("app") / "log.txt"
    with running_app(world, log) as (address, _):
        yield address
        # Whatever visitors do is told them, and is no bug; but for who goes around the page.
        text = log.read_text()
        assert text.count("Traceback") == text.count("it was not uploaded by a user")


@pytest.fixture
def visit(browser: None, address: str, tmp_path: Path) -> Iterator[Callable[..., Visitor]]:
    """Lets visitors come; what each sees in the end becomes a picture in `tmp_path`."""
    pictures = (tmp_path / f"{number}.png" for number in itertools.count())
    with ExitStack() as stack:
        yield lambda *size: stack.enter_context(visitor(address, next(pictures), *size))


def last_images(studio: Studio, settings: Settings = SETTINGS, order: str = "lpd") -> np.ndarray:
    *_, last = studio.generate(settings, order)
    return last.images


def test_generation_is_watched_and_is_the_studio_s(visit: Callable, studio: Studio) -> None:
    page = visit()
    page.enter(**FIELDS)
    sights = page.run()
    np.testing.assert_array_equal(page.images("generated"), last_images(studio))
    assert len({tuple(sight.images) for sight in sights}) >= 5  # some of 8 steps
    assert len({sight.status for sight in sights if sight.status.startswith("step ")}) >= 3
    first = served(next(sight.images[0] for sight in sights if sight.images))
    assert any(np.array_equal(first, frame.images[0]) for frame in studio.generate(SETTINGS))
    assert page.all("#generated-status progress")

    page.click("#more button")
    page.enter(top_k=5, temperature=0.5, top_p=0.9, pause=0)
    sampling = SamplingSettings(cfg=10.0, temperature=0.5, top_k=5, top_p=0.9)
    for order in ("random", "raster"):
        page.click(f"#order input[value={order}]")
        page.run()
        expected = last_images(studio, replace(SETTINGS, sampling=sampling), order)
        np.testing.assert_array_equal(page.images("generated"), expected)


def test_a_painted_part_is_made_anew_and_the_rest_kept(visit: Callable, studio: Studio) -> None:
    page = visit()
    page.enter(**FIELDS)
    page.run()
    assert page.chosen("generated") == [0]
    page.all("#generated-gallery button img")[2].click()
    page.wait(lambda: page.chosen("generated") == [2], "the mark on what was clicked")
    page.click("#take")
    page.paint((-50, -50), (10, 10), (40, 20), (20, 0))
    page.wait(page.is_painted, "paint")
    page.enter(label="2", seed=9)
    sights = page.run("edit", "edited")
    first = served(next(sight.images[0] for sight in sights if sight.images))
    cells = (first == GREY).all(axis=-1).reshape(GRID.side, GRID.stride, GRID.side, GRID.stride)
    mask = cells.all(axis=(1, 3))
    assert 1 <= mask.sum() <= GRID.num_tokens // 2
    assert mask[1, 1] and not mask[-1, -1]  # where the brush passed, above and left of the middle
    *_, frame = studio.generate(SETTINGS)
    *_, edited = studio.edit(frame.picture(2), mask, replace(SETTINGS, label=2, seed=9))
    np.testing.assert_array_equal(page.images("edited"), edited.images)
    assert f"{edited.steps} steps in " in sights[-1].status

    # A variant can be edited further: it is what stands on the canvas then.
    page.click("#again")
    page.wait(lambda: not page.is_painted(), "a picture without paint")
    assert not page.is_covered()
    page.start("edit", "edited")
    assert "Nothing is painted: please brush over what is to be made anew." in page.complaint()

    # Of new images the first is marked, and taken.
    page.open_tab("Generate")
    page.enter(**FIELDS)
    page.run()
    assert page.chosen("generated") == [0]
    page.click("#take")
    page.paint((-50, -50), (10, 10))
    page.click("#keep input")
    page.run("edit", "edited")
    edited = page.images("edited")[:, 12:]  # below the paint
    np.testing.assert_array_equal(edited, np.broadcast_to(frame.images[:1, 12:], edited.shape))


def test_an_upload_is_edited_and_keeps_its_pixels(visit: Callable, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.new("RGB", (16, 16), "green").save(tmp_path / "other.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    page = visit()
    page.open_tab("Edit")
    page.upload(tmp_path / "bad.png")
    assert "This file cannot be read, expected an image." in page.complaint()
    page.upload(tmp_path / "other.png")
    page.wait(lambda: (0, 128, 0) in page.colours(), "the first picture")
    page.upload(tmp_path / "wide.png")
    page.enter(**FIELDS)
    page.paint((-40, -40), (5, 5))
    assert not page.is_covered()
    page.click("#keep input")
    page.run("edit", "edited")
    images, middle = page.images("edited"), np.stack([pixels[:, 4:20]] * 3)
    np.testing.assert_array_equal(images[:, 12:], middle[:, 12:])


def test_a_phone_compares_orders_one_below_the_other(visit: Callable) -> None:
    page = visit("500,900")
    page.open_tab("Compare orders")
    places = [page.find(f"#compare-{order}-gallery").rect for order in ORDERS]
    assert len({place["width"] for place in places}) == 1
    assert len({place["y"] for place in places}) == 3
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 500


def test_the_list_of_classes_closes_and_errors_are_one_sentence(visit: Callable) -> None:
    page, options = visit(), "[data-testid=dropdown-option]"
    page.enter(label="<b>x")
    page.start("generate", "generated")
    assert "Class: found '<b>x', expected" in page.complaint()
    page.click("#take")
    assert "There is no image yet" in page.complaint()
    assert "Traceback" not in page.driver.page_source
    field = page.find("#label input")
    field.click()
    page.find(options)
    field.send_keys(KEYS.CONTROL, "a")
    field.send_keys("class 2", KEYS.TAB)
    assert not any(option.is_displayed() for option in page.all(options))
    page.run()


def test_two_visitors_are_served_in_turn_and_never_mix(visit: Callable, studio: Studio) -> None:
    first, second = visit(), visit()
    wish = replace(SETTINGS, label=2, count=2, seed=8, steps=6)
    first.enter(**FIELDS)
    second.enter(label=2, count=2, seed=8, steps=6, cfg=10)
    second.open_tab("Compare orders")
    names = [f"compare-{order}" for order in ORDERS]
    first.start("generate", "generated")
    second.start("compare", *names)
    seen = [first.finish("generated"), second.finish("compare-raster")]
    np.testing.assert_array_equal(first.images("generated"), last_images(studio))
    for name, order in zip(names, ORDERS, strict=True):
        second.finish(name)
        np.testing.assert_array_equal(second.images(name), last_images(studio, wish, order))
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
    page.wait(lambda: page.seen("step "), "a step")


def test_a_visitor_who_stops_or_leaves_makes_room(visit: Callable) -> None:
    def soon() -> None:  # not after the first one's half a minute
        second.enter(**FIELDS)
        second.start("generate", "generated")
        second.wait(lambda: second.seen("step "), "a step", seconds=15)
        second.finish("generated")

    first, second = visit(), visit()
    start_long(first)
    first.click("#generate-stop")
    first.click("#take")
    assert "This image is not finished" in first.complaint()
    soon()
    first.start("generate", "generated")
    first.wait(lambda: first.seen("step 1 "), "a step")
    first.driver.get("about:blank")
    soon()


# SIGHUP is passed on as SIGTERM.
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_a_signal_ends_the_program_whatever_it_does(
    browser: None, world: TinyWorld, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    files, log = tmp_path / "files", tmp_path / "log.txt"
    files.mkdir()
    with running_app(world, log, TMPDIR=str(files)) as (address, process):
        with visitor(address, tmp_path / "page.png") as page:
            start_long(page)
            assert list(files.glob("lpd-app-*"))
            process.send_signal(number)
            assert process.wait(60) == code
        assert not list(files.glob("lpd-app-*"))
    ends = ["interrupted"] if number is signal.SIGINT else []
    assert [line.split()[-1] for line in log.read_text().splitlines()[1:]] == ends


def test_only_what_was_uploaded_is_opened(address: str, tmp_path: Path) -> None:
    """A visitor who speaks to the program without the page names a picture of this machine."""

    def ask(path: str, content: bytes | None = None) -> str:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}{path}", content, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read().decode()  # to the end of the stream

    Image.new("RGB", (16, 16)).save(tmp_path / "private.png")
    file = {"path": str(tmp_path / "private.png"), "meta": {"_type": "gradio.FileData"}}
    events = json.loads(ask("/config"))["dependencies"]
    (upload,) = [event["id"] for event in events if event["targets"][0][1] == "upload"]
    wish = {"data": [file], "fn_index": upload, "session_hash": "somebody"}
    ask("/gradio_api/queue/join", json.dumps(wish).encode())
    said = ask("/gradio_api/queue/data?session_hash=somebody")
    assert "it was not uploaded by a user" in said
    assert "image.png" not in said
    with pytest.raises(urllib.error.HTTPError, match="403"):
        ask(f"/gradio_api/file={file['path']}")
