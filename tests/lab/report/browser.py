"""A page of the report in a real browser."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="no chromium with its driver (Debian: chromium-driver; Ubuntu has it as a snap alone)",
)

ARGUMENTS = (
    *("--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
PATIENCE = 60
"""Seconds that are waited for something that must happen; on a busy machine it may take long."""


class Page:
    """The page of a test in the browser."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, path: Path) -> None:
        """Load a file and forget what was logged before."""
        self.complaints()
        self.requests()
        self.driver.get(path.as_uri())

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def visible(self, selector: str) -> list[str]:
        return [each.text for each in self.all(selector) if each.is_displayed()]

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Return what a condition has become."""
        return WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: condition())

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self) -> Any:
        return self.driver.switch_to.active_element

    def open_scenario(self, number: int) -> None:
        """Click on a scenario and wait for its figures."""
        self.all("button[data-open]")[number].click()
        self.wait(lambda: len(self.all(".opened:not([hidden]) .canvas .main-svg .xaxislayer-above")) >= 2)

    def emulate(self, command: str, **arguments: object) -> None:
        self.driver.execute_cdp_cmd(f"Emulation.{command}", arguments)

    def media(self, *, scheme: str = "light", medium: str = "") -> None:
        """Have the system prefer a scheme, and no motion: a page that scrolls gently is clicked at the wrong place."""
        wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        self.emulate("setEmulatedMedia", media=medium, features=features)

    def complaints(self) -> list[str]:
        """Return what the console has said: errors, warnings, what the policy has refused."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def requests(self) -> set[str]:
        """Return what the page asked for since it was opened."""
        logged: list[dict[str, Any]] = self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        entries = [json.loads(entry["message"])["message"] for entry in logged]
        sent = [
            entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"
        ]
        return {url for url in sent if not url.startswith(("data:", "chrome:"))}


@contextmanager
def started(profile: Path) -> Iterator[Chrome]:
    """Start the browser, with a directory for what it keeps."""
    options = ChromeOptions()
    options.binary_location = str(BROWSER)
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
    for argument in (*ARGUMENTS, *sandbox, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()
