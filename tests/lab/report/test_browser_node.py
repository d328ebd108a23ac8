"""The drawing of a node in a real browser: of a run that was really made, and of a file of an earlier version."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from lab.report.documents import read_documents, to_document
from lab.report.page import PageMaker
from tests.lab.labs import cli
from tests.lab.report.browser import Page, needs_browser
from tests.lab.report.samples import losing, record, run
from tests.lab.report.shapes import node_shape, seen
from tests.lab.report.test_layout import SHAPES

pytestmark = needs_browser

SUITE = """
import pytest

pytest_plugins = ["reloadlab.short_names"]

@pytest.mark.node(pods=2, devices=("eth0",))
def test_pair(scenario):
    scenario.reload("pod-1")
    scenario.reload("pod-1", "host")

@pytest.mark.node(pods=1, endpoint_routes=True, rate=0)
def test_routes(scenario):
    scenario.reload("pod-1")

@pytest.mark.node(pods=50, rate=0)
def test_many(scenario):
    scenario.reload("pod-30")

@pytest.mark.node(pods=0, devices=("eth0", "eth0.100"), rate=0)
def test_vlan(scenario):
    scenario.reload("host")

@pytest.mark.cluster(nodes=2, tunnel=True, pods=1, rate=0)
def test_cluster(cluster):
    cluster.reload("1/pod-1", "2/overlay")
"""
"""A node of each kind."""

WIDTHS = (1200, 768, 360)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run of SUITE."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    directory = tmp_path_factory.mktemp("made")
    (directory / "pytest.ini").write_text("[pytest]\naddopts = -p no:hypothesispytest\n")
    suite = directory / "test_shapes.py"
    suite.write_text(SUITE)
    command = cli("run", str(suite), "--workers", "1", "--rounds", "0", "--out", str(directory / "out"))
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    # On a busy machine the traffic may get no CPU: then there is no verdict, but the nodes were there.
    told = json.loads((directory / "out" / "run.json").read_text())["scenarios"]
    wrong = [each["message"] for each in told if each["outcome"] != "skipped" and not each["nodes"]]
    assert len(told) == SUITE.count("def test_"), done.stdout + done.stderr
    assert wrong == []
    return directory / "out" / "report.html"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run of an earlier version: it has no nodes, and no packets of loads."""
    document = run(losing())
    del document["nodes"]
    for each in document["scenarios"]:
        del each["nodes"]
    for each in document["reloads"]:
        each.pop("packets", None)
    directory = tmp_path_factory.mktemp("earlier")
    (directory / "run.json").write_text(json.dumps(document))
    path = directory / "report.html"
    path.write_text(PageMaker(read_documents([directory / "run.json"])).make())
    return path


def opened(page: Page, path: Path, name: str) -> list[Any]:
    """Open a scenario and return its drawings."""
    page.open(path)
    (button,) = (each for each in page.all("button[data-open]") if each.text.endswith(name))
    page.run("arguments[0].click()", button)
    return list(page.wait(lambda: page.all(".opened:not([hidden]) .drawn")))


def parts(page: Page, drawing: Any) -> Mapping[str, list[str]]:
    """Return the texts of each part of a drawing that is seen, by the first of them."""
    script = """
        const seen = [...arguments[0].querySelectorAll("svg.node")].filter((each) => each.checkVisibility());
        if (seen.length !== 1) throw new Error(`${seen.length} drawings are seen`);
        return [...seen[0].querySelectorAll(".part")].map((part) =>
            [...part.querySelectorAll("text")].map((text) => text.textContent));
    """
    return {texts[0]: texts[1:] for texts in page.run(script, drawing)}


def hover(page: Page, drawing: Any, words: str) -> str:
    """Move the mouse to what begins with these words; return what the page then tells."""
    script = """
        return [...arguments[0].querySelectorAll("[data-words]")].filter((each) =>
            each.checkVisibility() && each.dataset.words.startsWith(arguments[1]));
    """
    (found,) = page.run(script, drawing, words)
    page.run("arguments[0].scrollIntoView({block: 'center'})", found)
    ActionChains(page.driver).move_to_element(found).perform()
    told = str(page.run("return arguments[0].querySelector('.told').textContent", drawing))
    assert told == found.get_attribute("aria-label")
    return told


def sticking_out(page: Page) -> list[str]:
    """Return the texts that are wider than the part that they are in."""
    script = """
        const wrong = [];
        for (const text of document.querySelectorAll("svg.node text")) {
            if (!text.checkVisibility()) continue;
            const room = (text.closest(".hook") ?? text.closest(".part") ?? text.closest("svg")).querySelector("rect");
            const [inner, outer] = [text.getBoundingClientRect(), room.getBoundingClientRect()];
            const inside = inner.left >= outer.left && inner.right <= outer.right && inner.bottom <= outer.bottom;
            if (!inside) wrong.push(text.textContent);
        }
        return wrong;
    """
    return list(page.run(script))


@pytest.mark.privileged
def test_a_node_is_drawn_with_all_that_is_connected_to_it(page: Page, made: Path) -> None:
    (drawing,) = opened(page, made, "pair")
    found = parts(page, drawing)
    assert found["pod-1"] == ["eth0 · MTU 1500", "10.244.0.3", "fd00:10:244::3"]
    assert found["health"] == ["cilium · MTU 1500", "10.244.0.2", "fd00:10:244::2"]
    assert found["cilium_host"][1:3] == ["10.244.0.1/32", "fd00:10:244::1/128"]
    assert found["outside"] == ["eth0 · MTU 1500", "172.20.0.254/24", "fd00:172:20::fe/64"]
    assert found["eth0"][-2:] == ["ingress from_netdev", "egress to_netdev"]
    assert len([name for name in found if name.startswith("lxc")]) == 3
    assert "cilium_vxlan" not in found
    hooks = [each for each in page.all(".broad .hook") if "pod-1" in each.get_attribute("data-words")]
    told = hover(page, drawing, hooks[0].get_attribute("data-words"))
    assert "ingress: cil_from_container by tc, generation " in told
    assert " packets; attached by 2 reloads" in told
    told = hover(page, drawing, "cilium_host: veth, index 34")
    assert "pair with cilium_net. 4 routes here: 10.244.0.0/20 via 10.244.0.1 dev cilium_host" in told
    # Programs of the first load.
    told = hover(page, drawing, "lxc_health ingress")
    assert told == "lxc_health ingress: cil_from_container, which no reload of this scenario attached"


@pytest.mark.privileged
def test_a_route_shows_the_interface_that_it_leads_out_of(page: Page, made: Path) -> None:
    (drawing,) = opened(page, made, "routes")
    assert ("to its pods", "endpoint routes") in {
        (fact.find_element("css selector", "dt").text, fact.find_element("css selector", "dd").text)
        for fact in page.all(".detail .facts div")
    }
    page.run("arguments[0].querySelector('details').open = true", drawing)
    (button,) = (each for each in page.all("button.route") if each.text == "10.244.0.3")
    page.run("arguments[0].scrollIntoView({block: 'center'})", button)
    ActionChains(page.driver).move_to_element(button).perform()
    (lit,) = (each for each in page.all(".part.lit") if each.is_displayed())
    assert lit.get_attribute("data-name") == button.find_element("xpath", "../../td[1]").text
    assert lit.get_attribute("data-name").startswith("lxc")
    ActionChains(page.driver).move_to_element(page.one("h1")).perform()
    assert page.all(".part.lit") == []
    # The keyboard does the same.
    page.run("arguments[0].focus()", button)
    assert [each.get_attribute("data-name") for each in page.all(".part.lit") if each.is_displayed()] == [
        lit.get_attribute("data-name")
    ]


@pytest.mark.privileged
def test_nodes_of_a_cluster_are_drawn_with_what_is_between_them(page: Page, made: Path) -> None:
    first, second = opened(page, made, "cluster")
    assert parts(page, first)["node 2"] == ["172.20.1.1", "fd00:172:20:1::1", "pods 10.244.16.0/20"]
    assert parts(page, second)["node 1"] == ["172.20.0.1", "fd00:172:20::1", "pods 10.244.0.0/20"]
    assert parts(page, first)["cilium_vxlan"][:2] == ["vxlan · 35 · MTU 1500", "UDP port 8472"]
    assert parts(page, second)["outside"][0] == "underlay · MTU 1500"
    for drawing in (first, second):
        assert len(drawing.find_elements("css selector", ".broad .line.tunnel")) == 1
    told = hover(page, first, "cilium_host: veth")
    assert "10.244.16.0/20 via 10.244.0.1 dev cilium_host src 10.244.0.1 proto kernel mtu 1450" in told


@pytest.mark.privileged
def test_of_fifty_pods_a_few_are_drawn_and_all_are_in_the_tables(page: Page, made: Path) -> None:
    (drawing,) = opened(page, made, "many")
    found = parts(page, drawing)
    assert [name for name in found if name.startswith("pod-")] == ["pod-1", "pod-2", "pod-3", "pod-4", "pod-30"]
    assert found["45 more pods"] == ["pod-5 … pod-50"]
    for folded in drawing.find_elements("css selector", "details"):
        page.run("arguments[0].open = true", folded)
    rows = [row.text for row in drawing.find_elements("css selector", "tbody tr")]
    assert len([row for row in rows if "10.244.0.5" in row]) >= 1
    assert len({name for row in rows for name in row.split() if name.startswith("pod-")}) == 50


@pytest.mark.privileged
def test_a_vlan_is_drawn_on_its_device(page: Page, made: Path) -> None:
    document = json.loads(made.with_name("run.json").read_text())
    (scenario,) = (each for each in document["scenarios"] if each["name"].endswith("vlan"))
    if scenario["outcome"] == "skipped":
        pytest.skip(scenario["message"])
    (drawing,) = opened(page, made, "vlan")
    assert parts(page, drawing)["eth0.100"][1] == "id 100 on eth0"
    assert len(drawing.find_elements("css selector", ".broad .line.vlan")) == 1


@pytest.mark.privileged
@pytest.mark.parametrize("width", WIDTHS)
def test_on_every_screen_the_texts_of_a_made_run_fit(width: int, page: Page, made: Path) -> None:
    for name in ("pair", "cluster", "many"):
        check_width(page, made, name, width)
        # What is folded is told by its first and last; nothing else is cut.
        texts = [text.text for text in page.all("svg.node .part:not(.folded) text") if text.is_displayed()]
        assert not [text for text in texts if "…" in text]


@pytest.fixture(scope="module")
def handmade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a scenario for each of the shapes by hand: VLANs are among them, whatever the kernel has."""
    records = [record(f"test_a.py::test_{name}", nodes=(seen(shape),)) for name, shape in SHAPES.items()]
    path = tmp_path_factory.mktemp("handmade") / "report.html"
    path.write_text(PageMaker([to_document(Path("run.json"), run(*records))]).make())
    return path


@pytest.mark.parametrize("width", WIDTHS)
def test_on_every_screen_the_texts_of_all_shapes_fit(width: int, page: Page, handmade: Path) -> None:
    for name in SHAPES:
        check_width(page, handmade, name, width)


def check_width(page: Page, path: Path, name: str, width: int) -> None:
    page.emulate("setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    for drawing in opened(page, path, name):
        assert len(parts(page, drawing)) >= 2
        narrow = drawing.find_element("css selector", "svg.narrow")
        assert narrow.is_displayed() == (width < 500)
    for folded in page.all(".drawn details"):
        page.run("arguments[0].open = true", folded)
    assert sticking_out(page) == []
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    # As large as the text around it, or nearly so.
    sizes = page.run(
        "return [...document.querySelectorAll('svg.node')].filter((each) => each.checkVisibility())"
        ".map((each) => each.getBoundingClientRect().width / each.viewBox.baseVal.width)"
    )
    assert min(sizes) >= 0.8


def test_the_keyboard_reaches_every_part_of_the_drawing(page: Page, handmade: Path) -> None:
    opened(page, handmade, "a pod")
    page.run("document.querySelector('.opened:not([hidden]) .detail .facts').scrollIntoView()")
    focusable = [each for each in page.all("svg.node [tabindex]") if each.is_displayed()]
    page.run("arguments[0].focus()", focusable[0])
    for each in focusable:
        assert page.focused() == each
        assert page.one(".told").text == each.get_attribute("data-words")
        page.press(Keys.TAB)
    assert page.focused().text == "5 routes"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_drawing_follows_the_scheme_and_is_dark_on_light_on_paper(scheme: str, page: Page, handmade: Path) -> None:
    page.media(scheme=scheme)
    opened(page, handmade, "a pod")

    def brightness(selector: str, name: str) -> int:
        colour = page.run(f"return getComputedStyle(document.querySelector('svg.broad {selector}')).{name}")
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

    lighter = brightness(".part .back", "fill") > brightness(".part .name", "fill")
    assert lighter == (scheme == "light")
    page.media(scheme=scheme, medium="print")
    assert brightness(".part .back", "fill") == 3 * 255
    assert brightness(".part .name", "fill") == 0
    assert page.run("return document.querySelector('svg.broad').checkVisibility()")


def test_a_screen_reader_is_told_what_is_drawn(page: Page, handmade: Path) -> None:
    (drawing,) = opened(page, handmade, "a node more")
    picture = drawing.find_element("css selector", "svg.broad")
    assert picture.aria_role == "group"
    assert picture.accessible_name == (
        "The node: 3 endpoints in namespaces of their own, and the devices cilium_host, cilium_net, cilium_vxlan, "
        "eth0; beside it node 2. The tables below have the same."
    )
    named = picture.find_elements("css selector", "[tabindex]")
    assert all(each.accessible_name == each.get_attribute("data-words") for each in named)


def test_a_run_of_an_earlier_version_is_drawn_as_far_as_it_is_known(page: Page, earlier: Path) -> None:
    (drawing,) = opened(page, earlier, "loses")
    assert parts(page, drawing) == {
        "pod-1": [],
        "lxc1": ["ingress from_container", "egress to_container"],
    }
    told = hover(page, drawing, "lxc1 ingress")
    assert told.startswith(
        "lxc1 ingress: cil_from_container by tc, generation 2 of pod-1, program id 42; attached by 1"
    )
    assert "Of this run only the interfaces are known whose programs a reload attached" in drawing.text
    assert page.all("button.route") == []


def test_what_a_file_says_of_a_node_is_text(page: Page, tmp_path: Path) -> None:
    """A name that is markup is shown as it is."""
    name = '<img src="x" onerror="window.wrong = 1">'
    shape = node_shape(1)
    shape["interfaces"][2]["addresses"] = [name]
    shape["routes"][0]["text"] = name
    path = tmp_path / "report.html"
    found = {**seen(shape), "names": {"pod-1": name}}
    path.write_text(PageMaker([to_document(Path("run.json"), run(record(nodes=(found,))))]).make())
    (drawing,) = opened(page, path, "one")
    assert name[:10] in str(parts(page, drawing)["cilium_host"])
    assert page.run("return window.wrong") is None
