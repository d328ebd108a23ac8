from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from lab.abi.conntrack import CtEntry, CtTuple
from lab.agent.cluster import Cluster, cluster_specs
from lab.node.maps import MapNotLoaded
from lab.node.node import Node, UnknownTarget
from lab.node.topology import NodeSpec
from lab.watch import mapview
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(cluster_specs(unique_name()[:28], 2, pods=1, tunnel=True)) as cluster:
        cluster.start()
        yield cluster


def test_ipcache_rows_have_identity_and_tunnel(cluster: Cluster) -> None:
    one, two = cluster.nodes
    rows = {row["network"]: row for row in mapview.ipcache(one)}
    here, there = one.pods[0], two.pods[0]
    assert rows[f"{here.ipv4}/32"] == {
        "network": f"{here.ipv4}/32",
        "identity": here.identity,
        "name": "pod-1",
        "tunnel": None,
    }
    assert rows[f"{there.ipv6}/128"]["name"] == f"{two.name}/pod-1"
    assert rows[f"{there.ipv6}/128"]["tunnel"] == "172.20.1.1"
    assert rows[f"{two.spec.router4}/32"] | {"network": ""} == {
        "network": "",
        "identity": 6,
        "name": "remote-node",
        "tunnel": "172.20.1.1",
    }
    assert (rows["172.20.1.1/32"]["name"], rows["172.20.1.1/32"]["tunnel"]) == ("remote-node", None)
    assert rows["0.0.0.0/0"]["name"] == rows["::/0"]["name"] == "world"


def test_lxc_rows_name_the_endpoint(cluster: Cluster) -> None:
    node = cluster.node(1)
    rows = mapview.lxc(node)
    pod = node.pods[0]
    assert [row["address"] for row in rows if row["endpoint"] == "pod-1"] == [str(pod.ipv4), str(pod.ipv6)]
    assert {row["mac"] for row in rows if row["endpoint"] == "pod-1"} == {pod.mac}
    assert {row["id"] for row in rows if row["endpoint"] == "host"} == {0}


def test_tunnel_rows_have_the_node(cluster: Cluster) -> None:
    wanted = [{"network": str(IPv4Address("10.244.16.0")), "node": "172.20.1.1"}]
    assert mapview.tunnel(cluster.node(1)) == [*wanted, {"network": "fd00:10:244:1::", "node": "172.20.1.1"}]


def test_policy_rows_of_one_endpoint_or_all(cluster: Cluster) -> None:
    node = cluster.node(1)
    assert {row["endpoint"] for row in mapview.policy(node)} >= {"host", "health", "pod-1"}
    first, second = mapview.policy(node, "pod-1")
    assert (first["direction"], second["direction"]) == ("ingress", "egress")
    assert {first["name"], first["protocol"], first["port"], second["name"]} == {"any"}
    with pytest.raises(UnknownTarget, match="no endpoint nope"):
        mapview.policy(node, "nope")


def test_address_ranges_have_their_own_name(cluster: Cluster) -> None:
    node, agent = cluster.node(1), cluster.agent(1)
    rule = {"fromCIDR": ["192.0.2.0/24"]}
    agent.apply_policies({"name": "range", "endpoint": "pod-1", "ingress": [rule]})
    try:
        assert {row["network"]: row["name"] for row in mapview.ipcache(node)}["192.0.2.0/24"] == "192.0.2.0/24"
        assert "192.0.2.0/24" in {row["name"] for row in mapview.policy(node, "pod-1")}
    finally:
        agent.apply_policies([])


def test_a_connection_has_the_addresses_of_its_initiator() -> None:
    """The addresses of the key are those of the reply, the ports are not, as with Cilium."""
    key = bytes((10, 0, 0, 1, 10, 0, 0, 2)) + (80).to_bytes(2, "big") + (40000).to_bytes(2, "big") + bytes((6, 0))
    value = b"".join(n.to_bytes(8, "little") for n in (3, 300, 4, 400)) + (99).to_bytes(4, "little")
    value += (0b10010).to_bytes(2, "little") + bytes(4) + bytes((2, 18)) + bytes(2) + (1001).to_bytes(4, "little")
    row = mapview.connection(CtTuple.unpack(key), CtEntry.unpack(value.ljust(56, b"\0")), now=90)
    assert (row["source"], row["destination"]) == ("10.0.0.1:40000", "10.0.0.2:80")
    assert (row["protocol"], row["direction"], row["seconds_left"]) == ("TCP", "egress", 9)
    assert (row["rx_packets"], row["rx_bytes"], row["tx_packets"], row["tx_bytes"]) == (3, 300, 4, 400)
    assert (row["tx_flags"], row["rx_flags"]) == (["SYN"], ["SYN", "ACK"])
    assert row["state"] == ["seen_non_syn", "tx_closing"]


def test_a_map_that_is_not_loaded_is_an_error() -> None:
    with Node(NodeSpec(unique_name(), pods=1)) as node:
        assert mapview.policy(node) == []
        for name in ("ipcache", "lxc", "ct", "metrics", "tunnel"):
            with pytest.raises(MapNotLoaded, match=f"reloadlab reload {node.name}"):
                mapview.MAPS[name](node)
        with pytest.raises(MapNotLoaded, match="no map cilium_policy_00101"):
            mapview.policy(node, "pod-1")
