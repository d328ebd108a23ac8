from __future__ import annotations

import hashlib
import itertools
import re
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from random import Random

import pytest

from datapath.errors import InvalidName, ReloadlabError
from lab.node.topology import (
    MAX_PODS,
    InvalidSpec,
    NodeFacts,
    NodeSpec,
    PodSpec,
    lxc_ifname,
    next_pod_number,
    plan_node,
    plan_pod,
    pod_number,
    random_mac,
)


def test_pods_are_spelled_out() -> None:
    spec = NodeSpec("demo", pods=3)
    assert [pod.name for pod in spec.pod_specs] == ["pod-1", "pod-2", "pod-3"]
    assert spec == NodeSpec("demo", pods=tuple(PodSpec(f"pod-{n}") for n in (1, 2, 3)))


def test_addresses_of_the_first_node() -> None:
    spec = NodeSpec("demo", pods=2)
    facts = plan_node(spec)
    assert (str(spec.pod_cidr4), str(spec.pod_cidr6)) == ("10.244.0.0/20", "fd00:10:244::/64")
    assert (spec.router4, spec.router6) == (IPv4Address("10.244.0.1"), IPv6Address("fd00:10:244::1"))
    assert (facts.health.ipv4, facts.health.ipv6) == (IPv4Address("10.244.0.2"), IPv6Address("fd00:10:244::2"))
    assert [str(pod.ipv4) for pod in facts.pods] == ["10.244.0.3", "10.244.0.4"]
    assert [str(pod.ipv6) for pod in facts.pods] == ["fd00:10:244::3", "fd00:10:244::4"]
    assert (str(spec.node4), str(spec.outside4)) == ("172.20.0.1/24", "172.20.0.254/24")
    assert (str(spec.node6), str(spec.outside6)) == ("fd00:172:20::1/64", "fd00:172:20::fe/64")


def test_vlan_devices() -> None:
    """Their order is that of the devices; the last id has an address and an index as well."""
    first, last = NodeSpec("demo", devices=("eth0.100", "eth0", "eth0.4094"), node_index=2).vlans
    assert [(vlan.name, vlan.id, vlan.ifindex) for vlan in (first, last)] == [
        ("eth0.100", 100, 90100),
        ("eth0.4094", 4094, 94094),
    ]
    assert (str(first.node4), str(first.node6)) == ("10.0.100.3/24", "fd00:8021:64::3/64")
    assert (str(first.outside4), str(first.outside6)) == ("10.0.100.254/24", "fd00:8021:64::fe/64")
    assert (str(last.node4), str(last.outside6)) == ("10.15.254.3/24", "fd00:8021:ffe::fe/64")


def test_nodes_do_not_share_addresses() -> None:
    specs = [NodeSpec("demo", devices=("eth0.100",), node_index=index) for index in range(16)]
    for a, b in itertools.combinations(specs, 2):
        assert not a.pod_cidr4.overlaps(b.pod_cidr4)
        assert not a.pod_cidr6.overlaps(b.pod_cidr6)
        assert not a.node4.network.overlaps(b.node4.network)
        assert not a.node6.network.overlaps(b.node6.network)
        assert not {*a.underlay_addresses} & {*b.underlay_addresses}


def test_largest_node_has_distinct_facts_in_range() -> None:
    spec = NodeSpec("demo", pods=4000, node_index=15)
    facts = plan_node(spec)
    endpoints = (facts.health, *facts.pods)
    devices = (facts.cilium_host, facts.cilium_net, facts.vxlan, facts.uplink)
    for pod in endpoints:
        assert pod.ipv4 in spec.pod_cidr4
        assert pod.ipv6 in spec.pod_cidr6
        assert 1 < pod.endpoint_id < 65535
    for values in (
        [pod.endpoint_id for pod in endpoints],
        [pod.identity for pod in endpoints],
        [pod.ipv4 for pod in endpoints] + [spec.router4],
        [pod.ifname for pod in endpoints],
        [pod.ifindex for pod in endpoints] + [device.ifindex for device in devices],
        [pod.mac for pod in endpoints] + [pod.node_mac for pod in endpoints] + [device.mac for device in devices],
    ):
        assert len(set(values)) == len(values)


def test_facts_follow_from_spec_and_randomness() -> None:
    spec = NodeSpec("demo", pods=3)

    def plan(seed: int) -> NodeFacts:
        return plan_node(spec, Random(seed).randbytes)

    assert plan(1) == plan(1)
    assert plan(1) != plan(2)


def test_ifname_is_that_of_the_cni_plugin() -> None:
    # sha256("abc:eth0")
    assert lxc_ifname("abc") == "lxc" + hashlib.sha256(b"abc:eth0").hexdigest()[:12]
    pod = plan_node(NodeSpec("demo", pods=1)).pods[0]
    assert pod.ifname == lxc_ifname(pod.container_id)
    assert len(pod.ifname) == 15


def test_random_mac_is_unicast_and_local() -> None:
    for first in range(256):
        mac = random_mac(partial(_repeat, first))
        assert re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", mac)
        assert int(mac[:2], 16) & 0b11 == 0b10


def _repeat(byte: int, count: int) -> bytes:
    return bytes([byte] * count)


def test_mtu_of_routes() -> None:
    assert NodeSpec("demo").route_mtu == 1500
    assert NodeSpec("demo", tunnel=True, mtu=9000).route_mtu == 8950


def test_later_pod_continues_the_numbers() -> None:
    spec = NodeSpec("demo", pods=2)
    facts = plan_node(spec)
    assert [pod_number(pod) for pod in facts.pods] == [0, 1]
    third = plan_pod(spec, PodSpec("late", identity=4711), 2)
    assert (third.endpoint_id, third.identity, str(third.ipv4)) == (103, 4711, "10.244.0.5")
    assert pod_number(third) == 2


def test_numbers_of_pods_that_are_gone_are_given_again_when_there_are_no_new_ones() -> None:
    """Pods that come and go would else leave the node without addresses for the few that it has."""
    spec = NodeSpec("demo", pods=3)
    first, _, third = plan_node(spec).pods
    assert next_pod_number(()) == 0
    assert next_pod_number((first, third)) == 3
    last = plan_pod(spec, PodSpec("last"), MAX_PODS - 1)
    assert last.ipv4 in spec.pod_cidr4
    assert next_pod_number((first, third, last)) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pods": -1}, "0 to 4000 pods"),
        ({"pods": 4001}, "0 to 4000 pods, not 4001"),
        ({"mtu": 1279}, "1280 to 65520"),
        ({"mtu": 1329, "tunnel": True}, "1330 to 65520"),
        ({"mtu": 65521}, "not 65521"),
        ({"node_index": 16}, "0 to 15"),
        ({"devices": ("eth7",)}, "no native device eth7"),
        ({"devices": ("eth7.100",)}, "no native device eth7.100; it can have eth0, and VLAN devices from eth0.1 to"),
        ({"devices": ("eth0.0",)}, "no native device eth0.0; it can"),
        ({"devices": ("eth0.0100",)}, "no native device eth0.0100; it can"),
        ({"devices": ("eth0.4095",)}, "VLAN devices from eth0.1 to eth0.4094"),
        ({"devices": ("eth0", "eth0.5", "eth0.5")}, "two native devices are called eth0.5"),
        ({"devices": tuple(f"eth0.{number}" for number in range(1, 7))}, "at most 5 VLAN devices, not 6"),
        ({"xdp": "fast", "devices": ("eth0",)}, "one of native, generic, best-effort, not fast"),
        ({"xdp": "native"}, "XDP programs are for native devices, and the node has none: build it with --devices eth0"),
        ({"devices": ("a/b",)}, "invalid interface name 'a/b'"),
        ({"pods": (PodSpec("a"), PodSpec("b"), PodSpec("a"))}, "two pods are called a"),
        ({"name": "a/b"}, "invalid lab name 'a/b'"),
        ({"name": ".."}, "invalid lab name"),
        ({"name": "x" * 40}, "at most 32"),
    ],
    ids=str,
)
def test_bad_spec(change: dict[str, object], words: str) -> None:
    with pytest.raises(ReloadlabError, match=re.escape(words)):
        NodeSpec(**({"name": "demo"} | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["", "Pod", "a/b", "..", "-a", "a-", "node", "host", "health", "outside", "overlay", "xdp", "x" * 33, "a\n"]
)
def test_bad_pod_name(name: str) -> None:
    with pytest.raises(InvalidName):
        PodSpec(name)


@pytest.mark.parametrize("identity", [0, 255, 1 << 24])
def test_bad_identity(identity: int) -> None:
    with pytest.raises(InvalidSpec, match=str(identity)):
        PodSpec("a", identity=identity)


def test_identity_from_labels() -> None:
    labels = frozenset({"k8s:app=web", "k8s:tier=front"})
    pods = (PodSpec("a", labels=labels), PodSpec("b", labels=labels), PodSpec("c", labels=frozenset({"k8s:app=web"})))
    first, second = (plan_node(NodeSpec("demo", pods=pods, node_index=index)).pods for index in (0, 1))
    a, b, c = (pod.identity for pod in first)
    assert a == b != c
    assert 65536 <= a < 1 << 24
    assert [pod.identity for pod in second] == [a, b, c], "the same labels, the same identity on every node"


def test_pods_without_labels_share_no_identity() -> None:
    nodes = [plan_node(NodeSpec("demo", pods=3, node_index=index)) for index in range(3)]
    identities = [pod.identity for node in nodes for pod in node.pods]
    assert identities[0] == 1001
    assert len(set(identities)) == 9


@pytest.mark.parametrize("port", [0, 65536])
def test_bad_tunnel_port(port: int) -> None:
    with pytest.raises(InvalidSpec, match="the tunnel's port is 1 to 65535"):
        NodeSpec("demo", tunnel_port=port)


def test_bad_datapath_mode() -> None:
    with pytest.raises(InvalidSpec, match="the datapath mode is one of veth, netkit, netkit-l2, not netkit-l3"):
        NodeSpec("demo", datapath_mode="netkit-l3")
    with pytest.raises(InvalidSpec, match="pods with netkit devices have no endpoint routes"):
        NodeSpec("demo", datapath_mode="netkit-l2", endpoint_routes=True)


def test_pods_with_netkit_devices_have_no_macs_and_the_other_devices_do() -> None:
    facts = plan_node(NodeSpec("demo", datapath_mode="netkit"))
    more = plan_pod(NodeSpec("demo", datapath_mode="netkit"), PodSpec("more"), 2)
    macs = {mac for pod in (facts.health, *facts.pods, more) for mac in (pod.mac, pod.node_mac)}
    assert macs == {"00:00:00:00:00:00"}
    assert len({facts.uplink.mac, facts.uplink.peer_mac, facts.cilium_host.mac, facts.vxlan.mac} | macs) == 5


def test_devices_that_programs_know_have_the_same_macs_in_each_lab_and_others_on_each_node() -> None:
    def macs(name: str, index: int) -> list[str]:
        facts = plan_node(NodeSpec(name, node_index=index))
        return [device.mac for device in (facts.cilium_host, facts.cilium_net, facts.vxlan)]

    assert macs("one", 0) == macs("another", 0)
    assert len({mac for index in range(16) for mac in macs("one", index)}) == 3 * 16
