"""The program under test, a real browser on its page, and what a visitor does and sees there."""

import io
import json
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from dataset.pictures import center_crop
from tests.commands import start_command
from tests.integration.tiny_world import TinyWorld

DEADLINE = 90.0
PAINT = (0xE5, 0x48, 0x4D)  # as app.page has it
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


@contextmanager
def running_app(
    world: TinyWorld, log: Path, **variables: str
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Start the program on a free port, which says all to `log`: its page's address, and it."""

    def heed_signals() -> None:  # a shell's background jobs ignore Ctrl-C, nohup's SIGHUP
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    command = ["scripts/app.py", "--port", 0, "--device", "cpu"]
    command += ["--pretrained_ckpt", world.checkpoint, "--vqgan_path", world.tokenizer]
    with log.open("w") as output:
        options = {"stdout": output, "stderr": subprocess.STDOUT, "preexec_fn": heed_signals}
        process = start_command(*command, cold=True, variables=variables, **options)
    try:
        deadline = time.monotonic() + 240  # Gradio is slow to import
        while not (found := re.search(r"the page is at (http://\S+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"found {log.read_text()!r}, expected an address")
            time.sleep(0.1)
        yield found[1], process
    finally:
        process.terminate()  # it tidies up
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()


@contextmanager
def visitor(address: str, picture: Path, size: str = "1280,900") -> Iterator["Visitor"]:
    """Open the page; leave a picture of how it looked in the end, and ask nobody else."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    # Without a sandbox: it does not work for root.
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", f"window-size={size}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(address)
        visitor = Visitor(driver)
        visitor.find("#generate")
        yield visitor
        events = [json.loads(one["message"])["message"] for one in driver.get_log("performance")]
        asked = [one["params"] for one in events if one["method"] == "Network.requestWillBeSent"]
        addresses = {urlsplit(one["request"]["url"]) for one in asked}
        hosts = {one.netloc for one in addresses if one.scheme not in ("data", "blob")}
        assert hosts == {urlsplit(address).netloc}
    finally:
        driver.save_screenshot(str(picture))
        driver.quit()


class Visitor:
    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def wait(self, holds: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
        return WebDriverWait(self.driver, seconds, 0.05).until(lambda _: holds(), what)

    def find(self, selector: str) -> WebElement:
        def displayed() -> list[WebElement]:
            return [one for one in self.all(selector) if one.is_displayed()]

        return self.wait(displayed, selector)[0]

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def open_tab(self, name: str) -> None:
        next(tab for tab in self.all("button[role=tab]") if tab.text == name).click()

    def enter(self, **fields: object) -> None:
        """Type into fields of the left column, by name."""
        for name, value in fields.items():
            field = self.find(f"#{name} input" + ("" if name == "label" else "[type=number]"))
            field.click()
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(str(value), Keys.ENTER)

    def start(self, button: str, *results: str) -> None:
        self.driver.execute_script(_WATCH, results)
        self.click(f"#{button}")

    def seen(self, start: str = "") -> list[SimpleNamespace]:
        """What was seen since the start, as `_WATCH` keeps it; whose line starts so."""
        sights = self.driver.execute_script("return window.seen")
        return [SimpleNamespace(**one) for one in sights if one["status"].startswith(start)]

    def finish(self, result: str) -> list[SimpleNamespace]:
        """Wait for the end of what was started, and give all that was seen of one result."""

        def look() -> list[SimpleNamespace]:
            sights = [sight for sight in self.seen() if sight.name == result]
            started = any(sight.status.startswith("step ") for sight in sights)
            if not started or " steps in " not in sights[-1].status:
                return []
            # The page draws the line and the images one after the other.
            return sights if time.time() - sights[-1].at > 0.5 else []

        return self.wait(look, f"the end of {result}")

    def run(self, button: str = "generate", result: str = "generated") -> list[SimpleNamespace]:
        self.start(button, result)
        return self.finish(result)

    def images(self, result: str) -> np.ndarray:
        """The images of a result as they are served, (B, S, S, 3) uint8."""
        images = self.all(f"#{result}-gallery img")
        return np.stack([served(image.get_attribute("src")) for image in images])

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
        self.wait(lambda: len(self.colours()) > 10, "a picture on the canvas")
        first, *others = way
        drag = ActionChains(self.driver).move_to_element_with_offset(canvas, *first)
        drag.click_and_hold()
        for step in others:
            drag.move_by_offset(*step)
        drag.release().perform()

    def is_painted(self) -> bool:
        return PAINT in self.colours()

    def is_covered(self) -> bool:
        """Whether a sign of progress lies over the canvas."""
        return any(sign.is_displayed() for sign in self.all("#editor > .wrap:not(.hide)"))

    def chosen(self, result: str) -> list[int]:
        items = enumerate(self.all(f"#{result}-gallery .thumbnail-item"))
        return [number for number, item in items if "selected" in item.get_attribute("class")]

    def upload(self, path: Path) -> None:
        self.all("input[data-testid$=upload-button]")[0].send_keys(str(path))

    def colours(self) -> set[tuple[int, int, int]]:
        """What the browser shows in the middle of the canvas, beside its tools."""
        with Image.open(io.BytesIO(self.find("#editor canvas").screenshot_as_png)) as image:
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
