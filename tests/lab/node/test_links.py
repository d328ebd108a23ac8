from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from datapath.errors import NetlinkError
from datapath.kernel import netkit
from datapath.kernel.netlink import NetlinkSocket, attributes, text
from datapath.kernel.netns import enter
from lab.node import links
from lab.node.topology import PEER_IFINDEX, DeviceFacts, NodeSpec, PodFacts, plan_node
from tests.lab import wires
from tests.lab.labs import ip

IFLA_ADDRESS, IFLA_LINKINFO = 1, 18

SPEC = NodeSpec("demo", pods=3, mtu=1400, tunnel=True)


def test_messages_of_two_pods_differ_only_in_the_holes() -> None:
    first, second, _ = plan_node(SPEC).pods
    assert len(links.pod_devices(SPEC, first, 5)) == len(links.pod_devices(SPEC, second, 5))
    messages = list(zip(links.pod_inside(SPEC, first), links.pod_inside(SPEC, second), strict=True))
    assert sum(a != b for a, b in messages) == 2


@pytest.fixture
def node() -> Iterator[Path]:
    with wires.namespace() as path:
        yield Path(path)


@pytest.fixture
def pod() -> Iterator[Path]:
    with wires.namespace() as path:
        yield Path(path)


@pytest.mark.parametrize(("datapath_mode", "mode"), [("netkit", 1), ("netkit-l2", 0)])
def test_a_netkit_pair_drops_what_no_program_has_seen(datapath_mode: str, mode: int) -> None:
    """And leaves marks on what goes into the pod; the numbers are those of if_link.h."""
    spec = replace(SPEC, datapath_mode=datapath_mode)
    message = links.pod_devices(spec, plan_node(spec).pods[0], 5)
    found = dict(attributes(message, 32))
    assert (IFLA_ADDRESS in found) == (datapath_mode == "netkit-l2"), "the kernel refuses them to mode L3"
    info = dict(attributes(found[IFLA_LINKINFO]))
    options = {number: value for number, value in attributes(info[2]) if number != 1}
    assert text(info[1]) == "netkit"
    assert {number: int.from_bytes(value, "little") for number, value in options.items()} == {
        **{5: mode, 3: 0, 4: 2, 6: 0},
    }


@pytest.mark.privileged
@pytest.mark.skipif(not (os.geteuid() == 0 and netkit.is_supported()), reason="no netkit devices: CONFIG_NETKIT")
@pytest.mark.parametrize("datapath_mode", ["netkit", "netkit-l2"])
def test_pod_netkit(node: Path, pod: Path, datapath_mode: str) -> None:
    spec = replace(SPEC, datapath_mode=datapath_mode)
    facts = plan_node(spec).pods[1]
    descriptor = os.open(pod, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with NetlinkSocket(node) as netlink:
            netlink.request("make a pair", links.pod_devices(spec, facts, descriptor))
    finally:
        os.close(descriptor)
    (outer,) = ip(node, "link", "show", "dev", facts.ifname)
    (inner,) = ip(pod, "link", "show", "dev", "eth0")
    assert (outer["ifindex"], outer["address"], outer["mtu"]) == (facts.ifindex, facts.node_mac, 1400)
    assert (inner["ifindex"], inner["address"], inner["mtu"]) == (PEER_IFINDEX, facts.mac, 1400)
    with enter(node):
        assert netkit.is_primary(facts.ifindex)
        assert not netkit.is_primary(1)


@pytest.mark.privileged
def test_pod_veth(node: Path, pod: Path) -> None:
    facts = plan_node(SPEC).pods[1]
    connect(node, pod, facts)
    (outer,) = ip(node, "link", "show", "dev", facts.ifname)
    (inner,) = ip(pod, "link", "show", "dev", "eth0")
    assert (outer["ifindex"], outer["address"], outer["mtu"], outer["txqlen"]) == (
        facts.ifindex,
        facts.node_mac,
        1400,
        1000,
    )
    assert (inner["ifindex"], inner["address"], inner["mtu"], inner["txqlen"]) == (PEER_IFINDEX, facts.mac, 1400, 1000)
    assert "UP" in outer["flags"]
    assert "UP" not in inner["flags"]
    with pytest.raises(NetlinkError) as twice:
        connect(node, pod, facts)
    assert twice.value.errno == errno.EEXIST


@pytest.mark.privileged
def test_link_goes_and_takes_its_peer_along(node: Path, pod: Path) -> None:
    facts = plan_node(SPEC).pods[0]
    connect(node, pod, facts)
    with NetlinkSocket(node) as socket:
        socket.request("remove", links.delete_link(facts.ifindex))
    assert [link["ifname"] for link in ip(node, "link")] == ["lo"]
    assert [link["ifname"] for link in ip(pod, "link")] == ["lo"]


@pytest.mark.privileged
def test_routes_are_replaced_and_removed(node: Path, pod: Path) -> None:
    facts = plan_node(SPEC).pods[0]
    connect(node, pod, facts)
    net4, net6 = IPv4Network("10.1.0.0/16"), IPv6Network("fd01::/48")
    with NetlinkSocket(pod) as socket:
        socket.request("configure", *links.pod_inside(SPEC, facts))
        for mtu in (1300, 1299):
            message = links.route(links.RTM_NEWROUTE, net4, PEER_IFINDEX, gateway=SPEC.router4, mtu=mtu)
            socket.request("add", message, links.route(links.RTM_NEWROUTE, net6, PEER_IFINDEX))
        (found,) = ip(pod, "route", "show", str(net4))
        assert found["metrics"] == [{"mtu": 1299}]
        assert (found["gateway"], found["scope"], found["protocol"]) == ("10.244.0.1", "global", "boot")
        assert len(ip(pod, "-6", "route", "show", str(net6))) == 1
        socket.request("remove", links.route(links.RTM_DELROUTE, net4, PEER_IFINDEX, gateway=SPEC.router4))
        socket.request("remove", links.route(links.RTM_DELROUTE, net6, PEER_IFINDEX))
    assert ip(pod, "route", "show", str(net4)) == []
    assert ip(pod, "-6", "route", "show", str(net6)) == []


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("address", "length"), [(IPv4Address("10.9.9.9"), 24), (IPv6Address("fd09::9"), 64)], ids=["IPv4", "IPv6"]
)
def test_address_is_usable_at_once(node: Path, address: IPv4Address | IPv6Address, length: int) -> None:
    with NetlinkSocket(node) as socket:
        socket.request("add", links.add_address(links.LO_IFINDEX, address, length))
    found = [a for a in ip(node, "addr", "show", "dev", "lo")[0]["addr_info"] if a["local"] == str(address)]
    assert [(a["prefixlen"], a["scope"], a.get("tentative")) for a in found] == [(length, "global", None)]


def connect(node: Path, pod: Path, facts: PodFacts) -> None:
    device = DeviceFacts(facts.ifname, facts.ifindex, facts.node_mac, facts.mac)
    descriptor = os.open(pod, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with NetlinkSocket(node) as socket:
            socket.request("create", links.veth(SPEC, device, "eth0", descriptor))
    finally:
        os.close(descriptor)
