"""A real browser on the page, and what its visitor does and sees there."""

from __future__ import annotations

import io
import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from dataset.pictures import center_crop

T = TypeVar("T")

DEADLINE = 90.0
# A page that has not changed for so long, in seconds, has drawn all that it was told.
SETTLED = 0.5
# Fewer than any picture has.
FEW_COLOURS = 10
# As app.page has it.
PAINT = (0xE5, 0x48, 0x4D)
# Keeps each state of the galleries and their lines, with the time, as soon as it is there.
_WATCH = """
window.seen = [];
const look = () => {
    for (const name of arguments[0]) {
        const status = document.querySelector(`#${name}-status`).innerText.trim();
        const images = [...document.querySelectorAll(`#${name}-gallery img`)].map(i => i.src);
        const state = JSON.stringify([name, status, images]);
        if (window.last?.[name] === state) continue;
        window.last = {...window.last, [name]: state};
        window.seen.push({name, status, images, at: Date.now() / 1000});
    }
};
window.watcher?.disconnect();
window.watcher = new MutationObserver(look);
const what = {subtree: true, childList: true, attributes: true, characterData: true};
window.watcher.observe(document.body, what);
"""


class Sight(NamedTuple):
    """What stood on the page for a while."""

    name: str  # of the result: `generated`, `edited`, `compare-lpd`, ...
    status: str  # the line above the images
    images: list[str]  # their addresses
    at: float  # since when, seconds


@contextmanager
def visitor(address: str, picture: Path, size: str = "1280,900") -> Iterator[Visitor]:
    """Open the page; leave a picture of how it looked in the end, and ask nobody else."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    # Without a sandbox: it does not work for root.
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", f"window-size={size}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    try:
        driver.get(address)
        visitor = Visitor(driver)
        visitor.find("#generate")
        yield visitor
        assert visitor.hosts() == {urlsplit(address).netloc}
    finally:
        driver.save_screenshot(str(picture))
        driver.quit()


class Visitor:
    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def hosts(self) -> set[str]:
        """Whom the browser has asked for anything since this was called last."""
        events = [json.loads(entry["message"]) for entry in self.driver.get_log("performance")]
        requests = [
            event["message"]["params"]["request"]["url"]
            for event in events
            if event["message"]["method"] == "Network.requestWillBeSent"
        ]
        return {urlsplit(url).netloc for url in requests if not url.startswith(("data:", "blob:"))}

    def wait(self, holds: Callable[[], T], what: str, seconds: float = DEADLINE) -> T:
        deadline = time.monotonic() + seconds
        while not (found := holds()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"found none within {seconds:g} s, expected {what}")
            time.sleep(0.05)
        return found

    def find(self, selector: str) -> WebElement:
        def look() -> WebElement | None:
            found = self.all(selector)
            return next((element for element in found if element.is_displayed()), None)

        return self.wait(look, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def open_tab(self, name: str) -> None:
        tabs = self.all("button[role=tab]")
        next(tab for tab in tabs if tab.text == name).click()

    def enter(self, **fields: object) -> None:
        """Type into fields of the left column, by name."""
        for name, value in fields.items():
            selector = f"#{name} input" + ("" if name == "label" else "[type=number]")
            field = self.find(selector)
            field.click()
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(str(value))
            field.send_keys(Keys.ENTER)

    def start(self, button: str, *results: str) -> None:
        self.driver.execute_script(_WATCH, results)
        self.click(f"#{button}")

    def seen(self) -> list[Sight]:
        return [Sight(**sight) for sight in self.driver.execute_script("return window.seen")]

    def finish(self, result: str) -> list[Sight]:
        """Wait for the end of what was started, and give all that was seen of one result."""

        def look() -> list[Sight]:
            sights = [sight for sight in self.seen() if sight.name == result]
            started = any(sight.status.startswith("step ") for sight in sights)
            if not started or " steps in " not in sights[-1].status:
                return []
            # The page draws the line and the images one after the other.
            settled = time.time() - sights[-1].at > SETTLED
            return sights if settled else []

        return self.wait(look, f"the end of {result}")

    def images(self, result: str) -> np.ndarray:
        """The images of a result as they are served, (B, S, S, 3) uint8."""
        found = self.all(f"#{result}-gallery img")
        return np.stack([served(image.get_attribute("src")) for image in found])

    def complaint(self) -> str:
        """The sentence that the page shows; it is closed afterwards."""
        text = self.find(".toast-body").text
        self.click(".toast-close")
        self.wait(lambda: not self.all(".toast-body"), "no complaint any more")
        return text

    def paint(self, *way: tuple[int, int]) -> None:
        """Drag the brush, from pixels beside the middle of the canvas, and then step by step."""
        canvas = self.find("#editor canvas")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        self.wait(lambda: len(colours(canvas)) > FEW_COLOURS, "a picture on the canvas")
        first, *others = way
        drag = ActionChains(self.driver).move_to_element_with_offset(canvas, *first)
        drag.click_and_hold()
        for step in others:
            drag.move_by_offset(*step)
        drag.release().perform()

    def is_painted(self) -> bool:
        return PAINT in colours(self.find("#editor canvas"))

    def is_covered(self) -> bool:
        """Whether a sign of progress lies over the canvas."""
        signs = self.all("#editor > .wrap:not(.hide)")
        return any(sign.is_displayed() for sign in signs)

    def chosen(self, result: str) -> list[int]:
        found = self.all(f"#{result}-gallery .thumbnail-item")
        classes = [item.get_attribute("class").split() for item in found]
        return [number for number, names in enumerate(classes) if "selected" in names]

    def upload(self, path: Path) -> None:
        self.all("input[data-testid$=upload-button]")[0].send_keys(str(path))


def colours(element: WebElement) -> set[tuple[int, int, int]]:
    """What the browser shows in the middle of an element, beside its tools."""
    with Image.open(io.BytesIO(element.screenshot_as_png)) as image:
        square = center_crop(image.convert("RGB"), min(image.size))
    middle = square.crop([round(square.width * share) for share in (0.3, 0.3, 0.7, 0.7)])
    return {colour for _, colour in middle.getcolors(middle.width * middle.height)}


def served(address: str) -> np.ndarray:
    """An image of the page, (S, S, 3) uint8; it must be a PNG."""
    with urllib.request.urlopen(address, timeout=DEADLINE) as response:
        content = response.read()
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))
