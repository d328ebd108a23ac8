"""The browser of the tests of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome

from tests.lab.report.browser import Page, started


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with started(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@pytest.fixture
def page(driver: Chrome) -> Iterator[Page]:
    """A page on a screen of usual size; whatever a test does, the console must stay silent."""
    page = Page(driver)
    page.emulate("setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
    page.media()
    yield page
    assert page.complaints() == []
