"""restore.py on directories: which of them tell of an endpoint, whatever loaders have left when they were killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from datapath.build.epheader import HEADER_FILE, header_text
from datapath.build.headers import TEMPLATE_GENERATION
from datapath.endpoint import Endpoint, Interface
from datapath.reload.restore import find_endpoints, take_place, why_not
from tests.datapath.values import HOST, POD


def directory(state: Path, name: str, endpoint: Endpoint | None = POD, *, ipv4: bool = True) -> Path:
    """Make a directory with the header of an endpoint, or without one; `ipv4` tells two headers apart."""
    path = state / name
    path.mkdir()
    (path / "lock").touch()
    if endpoint is not None:
        (path / HEADER_FILE).write_bytes(header_text(endpoint if ipv4 else replace(endpoint, ipv4=None)))
    return path


def known(endpoint: Endpoint) -> Endpoint:
    return replace(endpoint, generation=TEMPLATE_GENERATION)


def test_each_directory_with_a_header_is_an_endpoint(tmp_path: Path) -> None:
    """What is no directory of an endpoint is passed over: files, templates, links, numbers that are none."""
    host, pod = directory(tmp_path, "7", HOST), directory(tmp_path, "1332")
    directory(tmp_path, "templates")
    directory(tmp_path, "01332")
    directory(tmp_path, "1332_old")
    (tmp_path / "99").touch()
    (tmp_path / "98").symlink_to(pod)
    found = find_endpoints(tmp_path)
    assert found.endpoints == {7: (known(HOST), host), 1332: (known(POD), pod)}
    assert found.unknown == {}


KILLED = {
    "a build under way": (("1332", "1332_next"), "1332"),
    "a failed build": (("1332", "1332_next_fail"), "1332"),
    "between the two renames": (("1332_stale", "1332_next"), "1332_next"),
    "the second rename failed": (("1332_stale",), "1332_stale"),
    "behind the two renames": (("1332", "1332_stale"), "1332"),
    "a first build": (("1332_next",), "1332_next"),
    "a first build that failed": (("1332_next_fail",), "1332_next_fail"),
}


@pytest.mark.parametrize(("names", "wanted"), KILLED.values(), ids=KILLED)
def test_a_loader_was_killed(tmp_path: Path, names: tuple[str, ...], wanted: str) -> None:
    """The endpoint is never lost; its own directory counts before all others, and takes its place."""
    for name in names:
        directory(tmp_path, name, ipv4=name == wanted)
    endpoint, path = find_endpoints(tmp_path).endpoints[POD.id]
    assert (endpoint, path.name) == (known(POD), wanted)
    take_place(tmp_path, POD.id, path)
    assert find_endpoints(tmp_path).endpoints[POD.id] == (known(POD), tmp_path / "1332")


@pytest.mark.parametrize("wanted", ["1332_next", "1332_stale"])
def test_a_directory_without_a_header_gives_way(tmp_path: Path, wanted: str) -> None:
    """Its lock stays where reloads expect it."""
    place = directory(tmp_path, "1332", None)
    take_place(tmp_path, POD.id, directory(tmp_path, wanted))
    assert find_endpoints(tmp_path).endpoints[POD.id] == (known(POD), place)
    assert (place / "lock").exists()


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    directory(tmp_path, "1332", None)
    directory(tmp_path, "1332_next", None).joinpath(HEADER_FILE).write_text("nothing")
    directory(tmp_path, "5")
    directory(tmp_path, "6", None).joinpath(HEADER_FILE).mkdir()
    found = find_endpoints(tmp_path)
    assert found.endpoints == {}
    assert found.unknown == {
        5: "5/ep_config.h: it is that of endpoint 1332",
        6: "6/ep_config.h: it is a directory",
        1332: "1332 has no ep_config.h; 1332_next/ep_config.h: it has no line CILIUM_BASE64_",
    }


def test_an_endpoint_needs_its_own_interface() -> None:
    pod = replace(POD, ifindex=5)
    own = Interface(pod.ifname, 5, pod.node_mac)
    assert why_not(pod, {pod.ifname: own}) is None
    assert why_not(pod, {}) == f"its interface {pod.ifname} does not exist"
    assert why_not(pod, {pod.ifname: replace(own, ifindex=6)}) == (
        f"its interface {pod.ifname} had index 5, one of that name has 6 now"
    )
    assert why_not(pod, {pod.ifname: replace(own, mac="0a:00:00:00:00:09")}) == (
        f"its interface {pod.ifname} had MAC {pod.node_mac}, one of that name has 0a:00:00:00:00:09 now"
    )
