"""The page in a real browser: it opens without an error and a request, and can be used as it promises."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from lab.report.documents import to_document
from lab.report.page import PageMaker
from lab.results.result import Series, to_json
from tests.lab.report.browser import Page, needs_browser
from tests.lab.report.samples import large, losing, parallel, record, run
from tests.lab.report.test_trials import SWEEP
from tests.lab.results.samples import result, times

pytestmark = needs_browser

SIDES = result(
    *(Series("reload", "s", times(n), side=side, group="g") for n, side in enumerate("AB")), sides=("A", "B")
)
ALL = (run(losing(), record(), record("scenarios/test_b.py::test_two"), measured=parallel()), SWEEP)
"""A run with a loss, parallel reloads, and a sweep."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of these tests."""
    directory = tmp_path_factory.mktemp("pages")
    sides = json.loads(json.dumps(to_json(SIDES)))
    contents = {"all": (*ALL, sides), "large": (large(100_000, 51),)}
    paths = {}
    for name, documents in contents.items():
        paths[name] = directory / f"{name}.html"
        paths[name].write_text(PageMaker([to_document(Path(f"{name}.json"), each) for each in documents]).make())
    return paths


def test_all_of_it_is_drawn_without_a_request(page: Page, files: dict[str, Path]) -> None:
    page.open(files["all"])
    assert page.one("h1").text == "✗ 1 of 3 scenarios failed"
    page.open_scenario(0)
    shown = [canvas for canvas in page.all(".canvas") if canvas.is_displayed()]
    for canvas in shown:
        page.run("arguments[0].scrollIntoView()", canvas)
        page.wait(partial(canvas.find_elements, By.CSS_SELECTOR, ".main-svg"))
    # Time line, steps; reloads by two numbers of workers, step times, comparison, values.
    assert len(shown) == 8
    assert page.all(".canvas.failed") == []
    assert page.requests() == {files["all"].as_uri()}


def test_more_than_two_sides_fit_the_page_beside_each_other(page: Page, tmp_path: Path) -> None:
    """Twelve, as of six releases by two loaders each: the table is no wider than the page, and every plot is drawn."""
    names = [f"1.{number}.0-rc.1, {way}" for number in range(14, 20) for way in ("tc", "our pipeline")]
    metrics = ("reload", "phase: load", "phase: write object", "verified instructions")
    series = [Series(each, "s", times(place), side=name) for place, name in enumerate(names) for each in metrics]
    content = json.loads(json.dumps(to_json(result(*series, sides=names))))
    path = tmp_path / "sides.html"
    path.write_text(PageMaker([to_document(Path("sides.json"), content)]).make())
    page.open(path)
    page.run("document.querySelector('#sides').scrollIntoView()")
    table = page.one("table.sides")
    assert len(table.find_elements(By.CSS_SELECTOR, "thead th")) == 1 + len(names)
    room = page.run("return arguments[0].parentElement.clientWidth", table)
    assert table.rect["width"] <= room + 1
    for canvas in page.all("#sides ~ figure .canvas"):
        page.run("arguments[0].scrollIntoView()", canvas)
        page.wait(partial(canvas.find_elements, By.CSS_SELECTOR, ".main-svg"))
    assert [each.text for each in page.all("#sides ~ figure h4")] == [
        "Reload, verified instructions, milliseconds",
        "Phase, milliseconds",
    ]
    assert (page.all(".canvas.failed"), page.complaints()) == ([], [])


def test_scenarios_are_filtered_by_text_and_outcome(page: Page, files: dict[str, Path]) -> None:
    page.open(files["all"])
    names = "tr.row th button"
    assert page.visible(names) == ["a: loses", "a: one", "b: two"]
    search = page.one('input[type="search"]')
    search.send_keys("REPLY lost")
    assert page.visible(names) == ["a: loses"]
    assert page.one(".shown").text == "1 of 3 scenarios shown"
    search.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE)
    page.one('input[value="failed"]').click()
    assert page.visible(names) == ["a: one", "b: two"]
    # A link to what is filtered out shows it again.
    page.one(".wrong a").click()
    page.wait(lambda: page.visible(".opened .chosen"))
    assert page.visible(names) == ["a: loses", "a: one", "b: two"]


def test_a_lost_packet_stands_where_it_was_lost(page: Page, files: dict[str, Path]) -> None:
    page.open(files["all"])
    page.open_scenario(0)
    waterfall = ".waterfall .canvas"
    page.wait(lambda: len(page.all(f"{waterfall} .shapelayer path")) == 3)
    lines = [each.rect["x"] for each in page.all(f"{waterfall} .shapelayer path")]
    # Bars of a trace are in the order of its values: of the steps that packets can notice, "attach ingress" is first.
    attach, commit = (each.rect for each in page.all(f"{waterfall} .barlayer .trace:nth-of-type(2) .point path")[:2])
    first, second, third = (line + 1 for line in lines)
    assert attach["x"] <= first < second <= attach["x"] + attach["width"] + 2
    assert attach["x"] + attach["width"] < third < commit["x"]
    assert page.one(".waterfall .chosen").text == "Steps of reload 1: pod-1, generation 2"
    # The other reload, which failed, has none.
    page.all("button.steps")[1].click()
    page.wait(lambda: page.one(".waterfall .chosen").text == "Steps of reload 2: pod-1, generation 3, failed")
    page.wait(lambda: not page.all(f"{waterfall} .shapelayer path"))
    steps = [row.get_attribute("textContent") for row in page.all("tbody.steps th")]
    assert steps == ["compile bpf_lxc.c", "load programs bpf_lxc.o", "attach ingress lxc1", "rollback"]


def test_the_keyboard_reaches_everything(page: Page, files: dict[str, Path]) -> None:
    page.open(files["all"])
    page.press(Keys.TAB)
    assert page.focused().text == "Skip to the results"
    page.press(Keys.ENTER)
    page.wait(lambda: page.focused().get_attribute("id") == "main")
    page.press(Keys.TAB)
    assert page.focused().get_attribute("type") == "search"
    page.press("loses")
    assert page.visible("tr.row th button") == ["a: loses"]
    page.press(Keys.TAB, Keys.TAB, Keys.TAB)
    opener = page.focused()
    assert (opener.text, opener.get_attribute("aria-expanded")) == ("a: loses", "false")
    assert page.run("return getComputedStyle(arguments[0]).outlineStyle", opener) == "solid"
    page.press(Keys.ENTER)
    page.wait(lambda: page.visible(".opened .chosen"))
    assert opener.get_attribute("aria-expanded") == "true"
    hook = None
    for _ in range(30):
        page.press(Keys.TAB)
        if page.focused().get_attribute("class") == "hook":
            hook = page.focused()
            break
    assert hook is not None
    assert "cil_from_container by tc, generation 2 of pod-1, program id 42" in page.one(".told").text


def test_on_a_telephone_nothing_is_wider_than_the_screen(page: Page, files: dict[str, Path]) -> None:
    page.emulate("setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    page.open(files["all"])
    page.open_scenario(0)
    for folded in page.all("details"):
        page.run("arguments[0].open = true", folded)
    assert page.run("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]


def test_on_a_telephone_metrics_whose_names_begin_alike_keep_rows_of_their_own(page: Page, tmp_path: Path) -> None:
    metrics = [f"traced step, outside bpf(2) and netlink: {step}" for step in ("compile", "load programs", "commit")]
    series = [
        Series(name, "s", times(number + place), side=side, group="g")
        for place, side in enumerate("AB")
        for number, name in enumerate(metrics)
    ]
    content = json.loads(json.dumps(to_json(result(*series, sides=("A", "B")))))
    path = tmp_path / "page.html"
    path.write_text(PageMaker([to_document(Path("ab.json"), content)]).make())
    page.emulate("setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    page.open(path)
    for canvas, rows in zip(page.all(".canvas"), (3, 6), strict=True):
        page.run("arguments[0].scrollIntoView()", canvas)
        ticks = page.wait(partial(canvas.find_elements, By.CSS_SELECTOR, ".ytick text"))
        assert len(ticks) == rows, [tick.text for tick in ticks]
        assert all(any(f": {step}" in tick.text for tick in ticks) for step in ("compile", "commit"))


def test_figures_follow_the_scheme_of_the_system(page: Page, files: dict[str, Path]) -> None:
    page.open(files["all"])
    page.open_scenario(0)
    text = ".waterfall .ytick text"

    def colour() -> Any:
        return page.run(f"return getComputedStyle(document.querySelector('{text}')).fill")

    light = page.wait(colour)
    page.media(scheme="dark")
    assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 28)"
    page.wait(lambda: page.all(text) and colour() != light)


@pytest.mark.parametrize("way", ["keys", "button"])
def test_figures_that_were_not_scrolled_to_are_drawn_before_printing(
    way: str, page: Page, files: dict[str, Path]
) -> None:
    page.open(files["all"])
    open_ones = "[...document.querySelectorAll('.canvas[data-chunk]')].filter((each) => each.checkVisibility())"
    drawn = f"{open_ones}.filter((each) => each.querySelector('.main-svg')).length"
    total = page.run(f"return {open_ones}.length")
    assert page.run(f"return {drawn}") < total
    page.run(f"window.print = () => {{ window.printed = {drawn}; }};")
    if way == "keys":
        ActionChains(page.driver).key_down(Keys.CONTROL).send_keys("p").key_up(Keys.CONTROL).perform()
    else:
        page.one("#print").click()
    assert page.wait(lambda: page.run("return window.printed")) == total


def test_on_paper_figures_are_dark_on_light_whatever_the_scheme(page: Page, files: dict[str, Path]) -> None:
    page.media(scheme="dark")
    page.open(files["all"])
    page.open_scenario(0)
    page.media(scheme="dark", medium="print")

    def style(selector: str, name: str) -> Any:
        return page.run(f"return getComputedStyle(document.querySelector('.waterfall {selector}')).{name}")

    assert style(".ytick text", "fill") == "rgb(0, 0, 0)"
    assert style(".main-svg", "backgroundColor") == "rgb(255, 255, 255)"
    behind = page.run(
        "return [...document.querySelectorAll('.waterfall .bg')].map((each) => getComputedStyle(each).fill)"
    )
    assert set(behind) <= {"rgb(255, 255, 255)"}


def test_a_large_run_does_only_the_work_that_is_looked_at(page: Page, files: dict[str, Path]) -> None:
    """However long that takes: what is behind scenarios that are closed is not unpacked, nor what is out of view."""
    page.open(files["large"])
    assert page.run("return parts.size") <= 2
    assert len(page.all(".js-plotly-plot")) <= 2
    assert page.run("return document.querySelectorAll('*').length") < 3000
    page.open_scenario(1)
    # A scenario is one part, with all its figures; of its reloads one is drawn.
    assert page.run("return [...parts.keys()].filter((name) => name.startsWith('s-'))") == ["s-1-1"]
    assert len(page.all(".opened:not([hidden]) .js-plotly-plot")) == 2
    page.open_scenario(0)
    assert page.run("return document.querySelectorAll('*').length") < 20_000


def test_a_run_of_100000_steps_opens(page: Page, files: dict[str, Path]) -> None:
    """Half of it is in one scenario."""
    page.open(files["large"])
    facts = dict(zip((e.text for e in page.all(".facts dt")), (e.text for e in page.all(".facts dd")), strict=True))
    assert facts["steps"] == "100,000"
    page.open_scenario(0)
    assert len(page.all("button.steps")) == 300
    number = page.one('.pick input[type="number"]')
    number.send_keys(Keys.CONTROL, "a", Keys.NULL, "400", Keys.ENTER)
    page.wait(lambda: page.one(".waterfall .chosen").text == "Steps of reload 400: pod-1, generation 399")
