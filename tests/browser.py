"""Headless Chromium for the tests of HTML pages; they are skipped if it is missing."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SCREENSHOTS = "PEGASUSX_REF_SCREENSHOTS"  # a folder that is kept after the tests


@contextmanager
def opened() -> Iterator[Any]:
    """Start a browser that logs its console and its requests; skip the test if it or its driver is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[test]'")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    binary = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("Chromium or its driver is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=service.Service(driver))
    try:
        resize(browser, 1366, 768)
        yield browser
    finally:
        browser.quit()


def open_page(browser: Any, file: Path, ready: str) -> None:
    """Open a page with empty logs and wait for an element that its script creates.

    Args:
        browser: the browser.
        file: the page.
        ready: a CSS selector of that element.
    """
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get("about:blank")  # otherwise the wait could find the element of the previous page
    browser.get_log("browser")
    requests_of(browser)
    browser.get(file.as_uri())
    WebDriverWait(browser, 30).until(lambda _: browser.find_elements("css selector", ready))


def resize(browser: Any, width: int, height: int) -> None:
    """Set the size of the viewport: headless Chromium ignores the size of its window."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def prefer(browser: Any, scheme: str) -> None:
    """Emulate a preference for light or dark pages."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def requests_of(browser: Any) -> list[str]:
    """List the URLs that the browser has requested since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def screenshot_folder(default: Path) -> Path:
    """Return the folder for screenshots."""
    folder = Path(os.environ.get(SCREENSHOTS) or default)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
