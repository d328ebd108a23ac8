"""layout.py: the parts of a drawn node have a place each, and lines lead to what belongs together."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from lab.report.layout import MOST, NARROW, WIDE, Box, Picture, cut, pictures
from lab.report.node import drawings
from lab.report.scenarios import scenarios_of
from tests.lab.report.samples import outcome, record, run
from tests.lab.report.shapes import hooked, link, node_shape, seen


def other(number: int) -> dict[str, Any]:
    addresses, pods = [f"172.20.{number}.1", f"fd00:172:20:{number:x}::1"], [f"10.244.{16 * number}.0/20"]
    return {"number": number, "port": f"node-{number - 1}", "addresses": addresses, "pods": pods}


def with_vlans() -> dict[str, Any]:
    shape = node_shape(1, tunnel=False)
    for number in (100, 200):
        name = f"eth0.{number}"
        shape["interfaces"].append(
            hooked(name, 90_000 + number, (f"10.0.{number}.1/24",), kind="vlan", parent="eth0", vlan=number)
        )
        shape["outside"].append(link(name, 90_000 + number, (f"10.0.{number}.254/24",), kind="vlan", parent="eth0"))
    return shape


def with_long_texts() -> dict[str, Any]:
    """Return a shape with names as long as they can be, of wide letters, and with a long address."""
    shape = node_shape(1)
    name = "m" * 32
    shape["endpoints"][1] |= {"name": name, "ifname": "lxc1"}
    shape["interfaces"][-1] |= {"name": "lxc1", "ingress": ["monitoring_of_memory_consumption"]}
    shape["interfaces"].append(hooked("W" * 15, 60, ("fd00:1234:5678:9abc:def0:1234:5678:9abc/128",)))
    return shape


SHAPES = {
    "long texts": with_long_texts(),
    "no pod": node_shape(0),
    "a pod": node_shape(1),
    "many pods": node_shape(50),
    "a node more": node_shape(2, others=[other(2)]),
    "many nodes": node_shape(2, others=[other(number) for number in range(2, 17)]),
    "VLANs": with_vlans(),
    "no tunnel": node_shape(2, tunnel=False, others=[other(2)]),
}


def drawn(shape: dict[str, Any] | None, *pods: int) -> list[Picture]:
    """Return how a node is drawn after reloads of these pods, on a wide screen and on a narrow one."""
    reloads = tuple({"node": 1, **outcome(f"pod-{n}", n, ifname=f"lxc{n}").to_json()} for n in pods or (1,))
    nodes = () if shape is None else (seen(shape),)
    (scenario,) = scenarios_of(run(record(reloads=reloads, nodes=nodes)))
    (node,) = drawings(scenario.reloads, scenario.nodes)
    return pictures(node)


@pytest.mark.parametrize("shape", [*SHAPES.values(), None], ids=[*SHAPES, "earlier version"])
def test_boxes_lie_apart_and_in_the_picture(shape: dict[str, Any] | None) -> None:
    for picture, columns in zip(drawn(shape), (WIDE, NARROW), strict=True):
        assert picture.columns is columns
        assert len(picture.boxes) >= 2
        for one, another in combinations(picture.boxes, 2):
            apart = one.right < another.x or another.right < one.x or one.bottom < another.y or another.bottom < one.y
            assert apart, (one, another)
        assert all(box.x >= 0 and box.right <= columns.width and box.bottom < picture.height for box in picture.boxes)
        # What is in the node's namespace is in its frame, nothing else is.
        left, right = columns.node[0], sum(columns.node)
        for box in picture.boxes:
            within = left < box.x and box.right < right and box.bottom < picture.node_bottom
            assert within == box.kind.startswith("interface"), box


def ends(picture: Picture, kind: str) -> set[frozenset[str]]:
    """Return what the lines of a kind join, by the titles of the boxes at whose edges they end."""
    found = set()
    for line in picture.lines:
        if line.kind == kind:
            points = _points(line.path)
            found.add(frozenset(_at(picture, *point) for point in (points[0], points[-1])))
    return found


def _points(path: str) -> list[tuple[int, int]]:
    """Return the corners of a path of M, H and V."""
    words = path.replace("M", " M ").replace("H", " H ").replace("V", " V ").split()
    x, y = int(words[1]), int(words[2])
    found = [(x, y)]
    for way, number in zip(words[3::2], words[4::2], strict=True):
        x, y = (int(number), y) if way == "H" else (x, int(number))
        found.append((x, y))
    return found


def _at(picture: Picture, x: int, y: int) -> str:
    (box,) = (box for box in picture.boxes if _touches(box, x, y))
    return box.title


def _touches(box: Box, x: int, y: int) -> bool:
    beside = x in (box.x, box.right) and box.y <= y <= box.bottom
    return beside or (y in (box.y, box.bottom) and box.x <= x <= box.right)


def test_lines_join_what_belongs_together() -> None:
    for picture in drawn(SHAPES["a node more"]):
        assert ends(picture, "pair") == {
            frozenset(pair)
            for pair in (
                ("pod-1", "lxc1"),
                ("pod-2", "lxc2"),
                ("health", "lxc_health"),
                ("cilium_host", "cilium_net"),
                ("eth0", "outside"),
                ("eth0", "node 2"),
            )
        }
        assert ends(picture, "tunnel") == {frozenset(("cilium_vxlan", "node 2"))}


def test_without_a_tunnel_nothing_leads_to_its_device() -> None:
    for picture in drawn(SHAPES["no tunnel"]):
        assert ends(picture, "tunnel") == set()
        assert "cilium_vxlan" not in [box.title for box in picture.boxes]


def test_a_vlan_is_on_its_device() -> None:
    for picture in drawn(SHAPES["VLANs"]):
        assert ends(picture, "vlan") == {frozenset(("eth0", f"eth0.{number}")) for number in (100, 200)}
        lines = {box.title: list(box.lines) for box in picture.boxes}
        assert lines["eth0.100"] == ["vlan · 90100 · MTU 1500", "id 100 on eth0", "10.0.100.1/24"]
        assert "10.0.200.254/24" in lines["outside"]


def test_of_many_pods_those_that_were_reloaded_are_drawn() -> None:
    for picture in drawn(SHAPES["many pods"], 30, 30, 7):
        pods = [box.title for box in picture.boxes if box.kind.startswith("pod")]
        assert pods == ["pod-1", "pod-2", "pod-3", "pod-7", "pod-30", "health", "45 more pods"]
        (folded,) = (box for box in picture.boxes if box.title == "45 more pods")
        assert "pod-8, " in folded.words
        assert "pod-30, " not in folded.words


def test_as_many_pods_as_fit_are_all_drawn() -> None:
    assert len([box for box in drawn(node_shape(MOST - 1))[0].boxes if box.kind == "pod"]) == MOST
    assert len([box for box in drawn(node_shape(MOST))[0].boxes if box.kind == "pod"]) < MOST


def test_of_many_nodes_a_few_are_drawn() -> None:
    for picture in drawn(SHAPES["many nodes"]):
        nodes = [box.title for box in picture.boxes if box.kind == "node"]
        assert nodes == ["node 2", "node 3", "node 4", "12 more nodes"]
        assert "172.20.16.1" in picture.boxes[[box.title for box in picture.boxes].index("12 more nodes")].words


def test_long_texts_are_cut() -> None:
    assert cut("cil_from_container", 200) == "cil_from_container"
    assert cut("x" * 30, 10 * 5.9) == "x" * 8 + "…"
    assert len(cut("m" * 30, 100)) < len(cut("x" * 30, 100)) < 30
    assert cut("", 100) == ""
