"""shape.py: nodes of the same kind have the same shape, whatever names and MACs they got."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import pytest

from lab.agent.cluster import cluster_specs
from lab.node.builder import NoVlanDevices
from lab.node.node import Node
from lab.node.shape import shape_of, with_names
from lab.node.topology import NodeSpec
from lab.node.view import look
from tests.lab.labs import ip, unique_name
from tests.lab.report.shapes import end, node_shape, route


def shape(node: Node) -> dict[str, Any]:
    return shape_of(look(node), attach="tc")[0]


@pytest.mark.privileged
def test_the_shape_of_a_node_has_nothing_that_is_chosen_by_chance() -> None:
    spec: dict[str, Any] = {"pods": 1, "tunnel": True, "endpoint_routes": True, "devices": ("eth0",)}
    for _ in range(2):
        with Node(NodeSpec(unique_name(), **spec)) as node:
            found, names = shape_of(look(node), attach="tc")
            assert json.loads(json.dumps(found)) == node_shape()
            assert names == {"pod-1": node.pods[0].ifname}
            assert node.pods[0].ifname in json.dumps(with_names(found, names))


@pytest.mark.privileged
def test_a_route_of_an_endpoint_has_the_pods_name_for_its_interface() -> None:
    with Node(NodeSpec(unique_name(), pods=1)) as node:
        pod = node.pods[0]
        ip(node.netns("node"), "route", "add", f"{pod.ipv4}/32", "dev", pod.ifname)
        found, names = shape_of(look(node), attach="tc")
    assert found["routes"].count(route(str(pod.ipv4), "{pod-1}", " scope link")) == 1
    assert with_names(found, names)["routes"].count(route(str(pod.ipv4), pod.ifname, " scope link")) == 1


@pytest.mark.privileged
def test_nodes_of_a_cluster_know_each_other_and_meet_on_a_bridge() -> None:
    specs = cluster_specs(unique_name()[:29], 3, pods=0)
    with ExitStack() as stack:
        first, second, _ = (stack.enter_context(Node(spec)) for spec in specs)
        found = shape(first)
        assert [each["number"] for each in found["others"]] == [2, 3]
        assert found["others"][0] == {
            "number": 2,
            "port": "node-1",
            "addresses": ["172.20.1.1", "fd00:172:20:1::1"],
            "pods": ["10.244.16.0/20", "fd00:10:244:1::/64"],
        }
        outside = {each["name"]: each for each in found["outside"]}
        assert outside["underlay"]["kind"] == "bridge"
        assert [outside[f"node-{number}"]["master"] for number in range(3)] == ["underlay"] * 3
        # Of the ports' other ends, a node knows its own.
        assert [outside[f"node-{number}"]["peer"] for number in range(3)] == [end("node", "eth0"), None, None]
        (uplink,) = (each for each in shape(second)["interfaces"] if each["name"] == "eth0")
        assert uplink["peer"] == end("outside", "node-1")


@pytest.mark.privileged
def test_a_vlan_names_its_device() -> None:
    with ExitStack() as stack:
        try:
            node = stack.enter_context(Node(NodeSpec(unique_name(), pods=0, devices=("eth0", "eth0.100"))))
        except NoVlanDevices as error:
            pytest.skip(str(error))
        found = shape(node)
        for place in ("interfaces", "outside"):
            (vlan,) = (each for each in found[place] if each["name"] == "eth0.100")
            assert (vlan["kind"], vlan["parent"], vlan["vlan"], vlan["peer"]) == ("vlan", "eth0", 100, None)


def test_names_are_put_where_they_were() -> None:
    assert with_names({"a": [{"b": "x {pod-1} y", "c": None}], "d": 1}, {"pod-1": "lxc1"}) == {
        "a": [{"b": "x lxc1 y", "c": None}],
        "d": 1,
    }
    # A name may be anything that a file can have.
    assert with_names({"a": "{pod-1}"}, {"pod-1": '"}]\\1'}) == {"a": '"}]\\1'}
