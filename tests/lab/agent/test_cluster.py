from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from datapath.base.mapnames import METRICS
from datapath.errors import Cancelled
from lab.abi.reasons import MISSED_TAIL_CALL
from lab.agent import contents
from lab.agent.cluster import BadName, Cluster, NoSuchNode, build, cluster_specs
from lab.errors import LabExists
from lab.node import registry
from lab.node.maps import open_map
from lab.node.node import Node
from lab.node.topology import NODE, OUTSIDE, InvalidSpec, NodeSpec
from lab.system.sockets import Address, bound_socket
from lab.watch.metrics import totals
from lab.watch.snapshot import take
from tests.lab.labs import ip, unique_name
from tests.lab.nodes import differences
from tests.netns import nsenter


def test_specs_of_a_cluster() -> None:
    one, two = cluster_specs("demo", 2, pods=3, tunnel=True, each={2: {"endpoint_routes": True, "pods": 1}})
    assert (one.name, one.node_index, one.cluster, len(one.pod_specs)) == ("demo-1", 0, "demo", 3)
    assert (two.name, two.node_index, two.endpoint_routes, len(two.pod_specs)) == ("demo-2", 1, True, 1)
    assert one.node4.network == two.node4.network == one.outside4.network
    assert one.node6.network == two.node6.network == one.outside6.network
    assert not one.pod_cidr4.overlaps(two.pod_cidr4)


@pytest.mark.parametrize(
    ("nodes", "each", "words"),
    [
        pytest.param(0, {}, "1 to 16 nodes, not 0", id="none"),
        pytest.param(17, {}, "1 to 16 nodes, not 17", id="too many"),
        pytest.param(2, {3: {}}, "node 3 does not exist: the nodes are 1 to 2", id="stranger"),
    ],
)
def test_bad_clusters(nodes: int, each: dict[int, dict[str, int]], words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        cluster_specs("demo", nodes, each=each)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        pytest.param(NodeSpec("b", node_index=1), "belongs to cluster ''", id="by itself"),
        pytest.param(NodeSpec("b", node_index=1, cluster="c", tunnel=True), "differ in tunnel", id="network"),
        pytest.param(NodeSpec("b", node_index=1, cluster="c", tunnel_port=99), "differ in tunnel_port", id="port"),
        pytest.param(NodeSpec("b", cluster="c"), "the same index", id="index"),
    ],
)
def test_nodes_that_cannot_meet(other: NodeSpec, words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        Cluster([NodeSpec("a", cluster="c"), other])


def test_names_in_a_cluster() -> None:
    cluster = Cluster(cluster_specs("demo", 2))
    for bad in ("pod-1", "/pod-1", "1/", "x/pod-1"):
        with pytest.raises(BadName, match="such as 2/pod-1"):
            cluster.find(bad)
    with pytest.raises(NoSuchNode, match="node 3 does not exist"):
        cluster.find("3/pod-1")


@pytest.fixture
def name() -> Iterator[str]:
    name = unique_name("set")[:28]
    yield name
    for member in registry.members(name):
        registry.remove(member, force=True)


@pytest.mark.privileged
def test_nodes_share_an_underlay(name: str) -> None:
    one, two = build(cluster_specs(name, 2, pods=1))
    assert os.stat(one.netns(OUTSIDE)).st_ino == os.stat(two.netns(OUTSIDE)).st_ino
    assert [node.name for node in one.peers] == [two.name]
    ports = {link["ifname"] for link in ip(one.netns(OUTSIDE), "link") if link.get("master") == "underlay"}
    assert ports == {"node-0", "node-1"}
    for here, there in ((one, two), (two, one)):
        for address in (there.spec.node4.ip, there.spec.node6.ip):
            ping = nsenter(here.netns(NODE), "ping", "-c1", "-W2", str(address))
            subprocess.run(ping, check=True, capture_output=True)


@pytest.mark.privileged
def test_each_node_has_an_id_for_the_others(name: str) -> None:
    """0 is its own."""
    one, two = build(cluster_specs(name, 2, pods=0))
    for here, there, number in ((one, two, 2), (two, one, 1)):
        ids = {key.address: value.id for key, value in contents.nodes(here)}
        own, other = here.spec.underlay_addresses, there.spec.underlay_addresses
        assert ids == dict.fromkeys(own, 0) | dict.fromkeys(other, number)


@pytest.mark.privileged
def test_underlay_goes_with_the_last_node(name: str) -> None:
    one, two = build(cluster_specs(name, 2, pods=0))
    inode = os.stat(one.netns(OUTSIDE)).st_ino
    argv = nsenter(one.netns(OUTSIDE), "sleep", "60")
    with subprocess.Popen(argv) as process:
        try:
            entered = time.monotonic() + 10
            while os.stat(f"/proc/{process.pid}/ns/net").st_ino != inode:
                assert time.monotonic() < entered
                time.sleep(0.005)
            one.down()
            assert process.poll() is None, "the underlay is still used"
            assert os.stat(two.netns(OUTSIDE)).st_ino == inode
            assert two.peers == ()
            two.down()
            assert process.wait(10) < 0, "nobody is left whose underlay it is"
        finally:
            process.kill()


@pytest.mark.privileged
def test_node_comes_back(name: str) -> None:
    specs = cluster_specs(name, 2, pods=1)
    one, two = build(specs)
    two.down()
    again = Node.up(specs[1])
    assert os.stat(one.netns(OUTSIDE)).st_ino == os.stat(again.netns(OUTSIDE)).st_ino
    assert [node.name for node in one.peers] == [again.name]


@pytest.mark.privileged
def test_all_nodes_or_none(name: str) -> None:
    specs = cluster_specs(name, 2, pods=0)
    Node.up(NodeSpec(specs[1].name, pods=0))
    try:
        with pytest.raises(LabExists):
            build(specs)
        assert registry.members(name) == (), "a lab of that name that is no node of the cluster stays out of it"
        assert not registry.lab_root(specs[0].name).exists()
    finally:
        registry.remove(specs[1].name)


@pytest.mark.privileged
@pytest.mark.parametrize("tunnel", [False, True], ids=["native", "tunnel"])
def test_routes_to_the_pods_of_others(name: str, tunnel: bool) -> None:
    one, two = build(cluster_specs(name, 2, pods=0, tunnel=tunnel))
    for node in (one, one):
        node.sync_routes()
    route, route6 = routes_to(one, two)
    assert (route["protocol"], route6["protocol"]) == ("kernel", "kernel")
    if tunnel:
        assert (route["gateway"], route["dev"], route["prefsrc"]) == ("10.244.0.1", "cilium_host", "10.244.0.1")
        assert (route6["dev"], route6["prefsrc"], route6.get("gateway")) == ("cilium_host", "fd00:10:244::1", None)
        assert route["metrics"] == route6["metrics"] == [{"mtu": 1450}]
    else:
        assert (route["gateway"], route["dev"]) == ("172.20.1.1", "eth0")
        assert (route6["gateway"], route6["dev"]) == ("fd00:172:20:1::1", "eth0")
    two.down()
    one.sync_routes()
    assert routes_to(one, two) == []


def routes_to(node: Node, other: Node) -> list[dict[str, object]]:
    shown = ip(node.netns(NODE), "route", "show", str(other.spec.pod_cidr4))
    return shown + ip(node.netns(NODE), "-6", "route", "show", str(other.spec.pod_cidr6))


@pytest.mark.privileged
def test_tunnel_port_makes_a_new_device(name: str) -> None:
    (node,) = build(cluster_specs(name, 1, pods=0, tunnel=True))
    seen = []
    for port in (8472, 9000, 9001):
        node.set_tunnel_port(port)
        (link,) = ip(node.netns(NODE), "link", "show", "dev", "cilium_vxlan")
        assert link["linkinfo"]["info_data"]["port"] == port
        assert link["ifindex"] == node.facts.vxlan.ifindex == Node.open(node.name).facts.vxlan.ifindex
        seen.append(link["ifindex"])
    assert len(set(seen)) == 3
    assert Node.open(node.name).datapath_config().node.encap_ifindex == seen[-1]


@pytest.mark.privileged
def test_mtu_changes_in_place(name: str) -> None:
    (node,) = build(cluster_specs(name, 1, pods=1, tunnel=True))
    before = {link["ifname"]: link["ifindex"] for link in ip(node.netns(NODE), "link")}
    node.set_mtu(1400)
    after = ip(node.netns(NODE), "link")
    assert {link["ifname"]: link["ifindex"] for link in after} == before
    assert {link["mtu"] for link in after if link["ifname"] != "lo"} == {1400}
    (default,) = ip(node.netns("pod-1"), "route", "show", "default")
    assert default["metrics"] == [{"mtu": 1350}]
    with pytest.raises(InvalidSpec, match="the MTU is 1330"):
        node.set_mtu(1300)


@pytest.mark.privileged
def test_what_is_cancelled_changes_nothing(name: str) -> None:
    """What reloads a cluster gives up when told to, before it changes anything of a node: device, route or program."""
    with Cluster(cluster_specs(name, 2, pods=1, tunnel=True)) as cluster:
        cluster.start()
        agent = cluster.agent(1)
        before = [state_of(node) for node in cluster.nodes]
        cancel = threading.Event()
        cancel.set()
        changes: dict[str, Callable[..., object]] = {
            "start": cluster.start,
            "MTU": partial(cluster.set_mtu, 1400),
            "tunnel port": partial(cluster.set_tunnel_port, 9000),
            "endpoint routes": partial(agent.set_endpoint_routes, True),
            "XDP": partial(agent.set_xdp, "generic"),
        }
        for what, change in changes.items():
            with pytest.raises(Cancelled):
                change(cancel=cancel)
            assert [state_of(node) for node in cluster.nodes] == before, what
        assert differences(cluster.nodes[0].name) == []


@pytest.mark.privileged
def test_a_cancelled_switch_leaves_the_node_route_away(name: str) -> None:
    """On the way back from endpoint routes it is the first thing that is changed."""
    with Cluster(cluster_specs(name, 1, pods=1, endpoint_routes=True)) as cluster:
        cluster.start()
        before = state_of(cluster.nodes[0])
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(Cancelled):
            cluster.agent(1).set_endpoint_routes(False, cancel=cancel)
        assert state_of(cluster.nodes[0]) == before


def state_of(node: Node) -> tuple[object, ...]:
    """Return what a switch changes: what node.json says, devices with their MTU, routes, programs and maps."""
    links = [(link["ifname"], link["ifindex"], link["mtu"]) for link in ip(node.netns(NODE), "link")]
    routes = [ip(node.netns(NODE), version, "route") for version in ("-4", "-6")]
    return Node.open(node.name).spec, links, routes, take(node).datapath()


@pytest.mark.privileged
def test_a_node_that_goes_handles_no_packet_by_halves(name: str) -> None:
    """The others go on sending; the last of its programs find no tail calls when its pins are gone."""
    with Cluster(cluster_specs(name, 2, pods=1, tunnel=True)) as cluster:
        cluster.start()
        one, two = cluster.nodes
        source, target = two.pod("pod-1"), one.pod("pod-1")
        deadline, done = time.monotonic() + 5, threading.Event()
        address = Address(str(two.netns("pod-1")), str(source.ipv4), 0)
        with open_map(one, METRICS) as counters, bound_socket(address, socket.SOCK_DGRAM, deadline) as sender:

            def counted() -> dict[tuple[int, int], int]:
                return {(key.reason, key.dir): value.count for key, value in totals(counters).items()}

            def send() -> None:
                while not done.is_set():
                    sender.sendto(b"still there?", (str(target.ipv4), 7050))

            thread = threading.Thread(target=send)
            thread.start()
            try:
                while not counted():
                    assert time.monotonic() < deadline
                one.keep()
                before = sum(counted().values())
                registry.remove(one.name, force=True)
                time.sleep(0.2)
            finally:
                done.set()
                thread.join()
            now = counted()
            assert sum(now.values()) > before, "nothing came while it went"
            assert [reason for reason, _ in now if reason == MISSED_TAIL_CALL] == []
