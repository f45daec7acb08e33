"""A headless browser, with what tests of pages do and ask."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SIZES = {"phone": (360, 740), "tablet": (820, 1100), "laptop": (1280, 900)}


class Browser:
    """A headless one.

    Args:
        driver: of selenium.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, fragment: str = "") -> None:
        """From disk, as a fresh page."""
        self.driver.get("about:blank")
        # It holds 50 addresses, and drops some from the middle to make room for another.
        self.driver.execute_cdp_cmd("Page.resetNavigationHistory", {})
        self.logs()
        self.driver.get(path.as_uri() + fragment)
        assert self.all("[data-ready]"), self.driver.get_log("browser")

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """What is read of each, in one question: one for each would take long."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText.trim())"
        )
        return self.run(script, selector)

    def run(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def press(self, *keys: str) -> None:
        """Keys at the element that has the focus, one after the other is done."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        for key in keys:
            ActionChains(self.driver).send_keys(getattr(Keys, key, key)).perform()
            self.settle()

    def go(self, fragment: str) -> None:
        """To another part of the page that is open."""
        self.run("location.hash = arguments[0]", fragment)
        self.settle()

    def step(self, by: int) -> None:
        """Back (−1) or forward (1) in the history of the page that is open.

        The browser notes an address later than the page has it, and would count from the one it knows.
        """
        here = self.address
        end = time.monotonic() + 20
        while True:
            history = self.driver.execute_cdp_cmd("Page.getNavigationHistory", {})
            current, entries = history["currentIndex"], history["entries"]
            if entries[current]["url"] == here:
                break
            assert time.monotonic() < end, (here, current, entries)
            self.settle()
        wanted = entries[current + by]
        self.driver.execute_cdp_cmd("Page.navigateToHistoryEntry", {"entryId": wanted["id"]})
        while self.address != wanted["url"]:
            assert time.monotonic() < end, (self.address, wanted)
            self.settle()
        self.settle()

    def settle(self) -> None:
        """Until the page has done what was asked of it: a change of address is told it later."""
        self.run("return new Promise((done) => setTimeout(() => requestAnimationFrame(done), 20))")

    @property
    def focused(self) -> str:
        """Text of the element that has the focus."""
        return self.driver.switch_to.active_element.text

    @property
    def address(self) -> str:
        return self.run("return location.href")

    @property
    def fragment(self) -> str:
        return self.run("return location.hash")

    def logs(self) -> tuple[list[str], set[str]]:
        """Console messages, and addresses that requests went to, since the last call."""
        messages = [entry["message"] for entry in self.driver.get_log("browser")]
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        asked, failed = (
            [e["params"] for e in events if e["method"] == f"Network.{name}"]
            for name in ("requestWillBeSent", "loadingFailed")
        )
        # These are announced, and stopped before they leave.
        stopped = {e["requestId"] for e in failed if e.get("blockedReason") == "csp"}
        return messages, {e["request"]["url"] for e in asked if e["requestId"] not in stopped}

    def resize(self, width: int, height: int) -> None:
        """Of the page itself, since a window cannot be narrower than 500."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, **features: str) -> None:
        """Media features."""
        wanted = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})


def start_browser() -> Browser:
    """Chromium; the test is skipped where it, or its driver, is missing."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs chromium and its driver on the path")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    own = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    own.implicitly_wait(0.1)
    return Browser(own)


def over(color: str, paper: str) -> str:
    """What a color that may let the paper through looks like on it."""
    *own, alpha = [*(float(x) for x in color[color.index("(") + 1 : -1].split(",")), 1.0][:4]
    below = [float(x) for x in paper[paper.index("(") + 1 : -1].split(",")[:3]]
    mixed = (alpha * a + (1 - alpha) * b for a, b in zip(own, below, strict=True))
    return f"rgb({','.join(map(str, mixed))})"


def contrast(one: str, other: str) -> float:
    """Of two colors, as WCAG counts it."""

    def luminance(color: str) -> float:
        parts = [float(x) / 255 for x in color[color.index("(") + 1 : -1].split(",")[:3]]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="session")
def started_browser() -> Iterator[Browser]:
    browser = start_browser()
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(started_browser: Browser) -> Browser:
    """As wide as a laptop, light, on a screen."""
    started_browser.resize(1280, 900)
    started_browser.prefer()
    return started_browser
