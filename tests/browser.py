"""A real browser without a window, for the pages that people look at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
#: It needs no graphics, no sandbox of its own, and nothing of the network but what it is shown.
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
)


@contextmanager
def open_browser(width: int = 1600, height: int = 900) -> Iterator[webdriver.Chrome]:
    """A chromium to drive. Where there is none, the test is skipped; where CI is set, it fails."""
    binary = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        _give_up("no chromium with its chromedriver here: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for option in (*_OPTIONS, f"--window-size={width},{height}"):
        options.add_argument(option)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.set_page_load_timeout(30)
        yield browser
    finally:
        browser.quit()


def text_of(browser: webdriver.Chrome) -> str:
    """What the page shows; "" while one page goes and the next has not come."""
    with suppress(NoSuchElementException, StaleElementReferenceException):
        return str(browser.find_element(By.TAG_NAME, "body").text)
    return ""


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
