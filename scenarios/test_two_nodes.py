"""Two nodes: pods talk across them while host, overlay and pods of either side are reloaded."""

from __future__ import annotations

import errno
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from reloadlab import (
    OUTSIDE,
    REMOTE_NODE_ID,
    VXLAN_OVERHEAD,
    WORLD_ID,
    Address,
    Cluster,
    ClusterScenario,
    Flow,
    Gate,
    PolicyKey,
    Probe,
    TunnelCapture,
    allow_fragments,
    bound_socket,
    cluster_flows,
    conntrack_rows,
    exchange,
    ipcache_key,
    is_ours,
    open_pin,
    rule_counters,
    slowness,
    take_snapshot,
)
from scenarios.pinned import pinned
from scenarios.steps import steps_of

IP_AND_UDP = 28
PATIENCE = 5.0
"""Seconds that a packet may take, on an ordinary machine."""

ROUNDS = 3

MIXED = {2: {"endpoint_routes": True}}
"""One node with a route per pod, the other without."""

NETWORKS = [
    pytest.param("native", marks=pytest.mark.cluster(pods=2)),
    pytest.param("native-mixed", marks=pytest.mark.cluster(pods=2, each=MIXED)),
    pytest.param("native-devices", marks=pytest.mark.cluster(pods=2, devices=("eth0",))),
    pytest.param("tunnel", marks=pytest.mark.cluster(pods=2, tunnel=True)),
    pytest.param("tunnel-mixed", marks=pytest.mark.cluster(pods=2, tunnel=True, each=MIXED)),
    pytest.param("tunnel-endpoint-routes", marks=pytest.mark.cluster(pods=2, tunnel=True, endpoint_routes=True)),
]


@pytest.mark.parametrize("network", NETWORKS)
def test_everything_is_reloaded(cluster: ClusterScenario, network: str) -> None:
    """Host, overlay, health and pods of one node after the other; what a reload has left is reloaded as well."""
    for _ in range(2):
        cluster.reload()
    assert len(cluster.outcomes) == 2 * len(cluster.cluster.subjects)


@pytest.mark.parametrize("network", NETWORKS)
def test_both_nodes_at_once(cluster: ClusterScenario, network: str) -> None:
    """Two agents that know nothing of each other's reloads."""
    with ThreadPoolExecutor(2, "node") as pool:
        done = pool.map(lambda agent: [agent.reload_all() for _ in range(ROUNDS)], cluster.cluster.agents)
        assert len(list(done)) == 2


@pytest.mark.parametrize("subject", ["2/overlay"])
@pytest.mark.cluster(pods=2, tunnel=True, each=MIXED, bursts="none")
def test_between_any_two_steps(cluster: ClusterScenario, subject: str) -> None:
    """Bursts over every path between any two steps of the one reload that both nodes' packets meet.

    The others stop for a packet of each flow when everything is reloaded.
    """
    silent: list[str] = []
    gate = Gate(lambda step, _: silent.extend(f"{step}: {flow}" for flow in cluster.silence()), after="*")
    cluster.reload(subject, gate=gate)
    number, name = subject.split("/")
    assert gate.passed >= steps_of(cluster.cluster.agent(int(number)), name)
    assert not silent


@pytest.mark.cluster(pods=2, tunnel=True, each=MIXED)
def test_identities_in_the_tunnel(cluster: ClusterScenario) -> None:
    """Every packet carries its pod's identity as VNI; the hosts are remote nodes to each other."""
    one, two = cluster.cluster.nodes
    pods = [one.pods[0], two.pods[0], one.facts.health, two.facts.health]
    wanted = {address: {pod.identity} for pod in pods for address in (pod.ipv4, pod.ipv6)}
    routers = (one.spec.router4, one.spec.router6, two.spec.router4, two.spec.router6)
    wanted |= {address: {REMOTE_NODE_ID} for address in routers}
    with TunnelCapture(one.netns(OUTSIDE), one.spec.tunnel_port) as capture:
        cluster.reload()
        assert capture.identities(list(wanted)) == wanted


NAMED = {"matchLabels": {"name": "pod-1"}}
ONE_BY_ONE = {
    "name": "one-by-one",
    "endpointSelector": NAMED,
    "ingress": [{"fromEntities": ["all"]}, {"fromEndpoints": [NAMED]}, {"fromEntities": ["world"]}],
}
"""Lets everything pass, and has entries of their own for pod-1 and for the world, which count their packets."""


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.cluster(policy=None)
def test_identities_arrive(cluster: ClusterScenario, network: str) -> None:
    """The receiving pod's policy sees the sender by its own identity, and never as the world."""
    sender, receiver = cluster.cluster.pod("1/pod-1"), cluster.cluster.pod("2/pod-1")
    agent = cluster.cluster.agent(2)
    cluster.expect(changed=frozenset({pinned(agent, f"cilium_policy_{receiver.endpoint_id:05d}")}))
    agent.apply_policies(ONE_BY_ONE)
    cluster.reload("1/host", "2/host", "1/pod-1", "2/pod-1")

    def let_in(identity: int) -> int:
        return rule_counters(agent.node, "pod-1")["pod-1", PolicyKey(identity, egress=False)][0]

    before = let_in(sender.identity)
    assert cluster.traffic.burst("1/pod-1 -> 2/pod-1 udp v4", 20).complete
    assert let_in(sender.identity) >= before + 20
    # The outside of this cluster is the world.
    world = let_in(WORLD_ID)
    assert world > 0
    assert cluster.traffic.burst("2/outside -> 2/pod-1 udp v6", 20).complete
    assert let_in(WORLD_ID) >= world + 20
    agent.apply_policies([])


@pytest.mark.parametrize("network", NETWORKS[::3])
@pytest.mark.cluster(policy=None)
def test_pods_come_and_go(cluster: ClusterScenario, network: str) -> None:
    """The other node learns of a pod, and forgets it; what it knew of the others never goes for a moment."""
    cluster.expect(changed=frozenset({"cilium_lxc"}))
    ipcache = pinned(cluster.cluster.agent(1), "cilium_ipcache")
    before = take_snapshot(cluster.cluster.node(1)).pins[ipcache].content
    cluster.cluster.add_pod("2/late")
    late = cluster.cluster.pod("2/late")
    now = take_snapshot(cluster.cluster.node(1)).pins[ipcache].content
    assert before is not None
    assert now is not None
    added = {ipcache_key(a, a.max_prefixlen) for a in (late.ipv4, late.ipv6)}
    assert now.keys() - before.keys() == added
    sender, port = cluster.cluster.pod("1/pod-1"), 7021
    here = Address(str(cluster.cluster.node(1).netns("pod-1")), str(sender.ipv4), port)
    there = Address(str(cluster.cluster.node(2).netns("late")), str(late.ipv4), port)
    assert exchange(here, there, Probe("udp", port)).answered
    assert _connections(cluster, late.ipv4) == {1, 2}
    cluster.cluster.remove_pod("2/late")
    assert take_snapshot(cluster.cluster.node(1)).pins[ipcache].content == before
    assert _connections(cluster, late.ipv4) == set()


def _connections(cluster: ClusterScenario, address: IPv4Address) -> set[int]:
    """Return the nodes that know a connection to a pod."""
    known = ((n, conntrack_rows(node, address=address)) for n, node in enumerate(cluster.cluster.nodes, 1))
    return {n for n, rows in known if any(row["destination"].startswith(f"{address}:") for row in rows)}


@pytest.mark.cluster(pods=2, tunnel=True, policy=None)
def test_pod_that_ipcache_does_not_know(cluster: ClusterScenario) -> None:
    """The tunnel map leads to its node all the same."""
    pod = cluster.cluster.pod("2/pod-1")
    agent = cluster.cluster.agent(1)
    if not is_ours(agent.config.library) and not (agent.config.globals / "cilium_tunnel_map").exists():
        pytest.skip("no program asks a tunnel map, as in Cilium since 1.18")
    with open_pin(agent.config.globals / pinned(agent, "cilium_ipcache")) as ipcache:
        for address in (pod.ipv4, pod.ipv6):
            assert ipcache.delete(ipcache_key(address, address.max_prefixlen))
    assert cluster.silence() == []
    cluster.cluster.sync()


SWITCHED_IN_A_TUNNEL = pytest.mark.own_sources(
    "a live switch of endpoint routes in a tunnel: other C sources leave packets to a direct route before it is there"
)


@SWITCHED_IN_A_TUNNEL
@pytest.mark.cluster(pods=2, tunnel=True)
def test_endpoint_routes_are_switched(cluster: ClusterScenario) -> None:
    """One node goes over to a route per pod and back, the other does not notice."""
    cluster.expect(other_path=True)
    for on in (True, False):
        cluster.cluster.agent(2).set_endpoint_routes(on, workers=2)
        cluster.reload("1/pod-1", "2/pod-1")


@pytest.mark.cluster(pods=2, tunnel=True, each=MIXED)
def test_tunnel_port(cluster: ClusterScenario) -> None:
    """Another port means another device: the tunnel is interrupted, everything else goes on; then all is as before."""
    nodes = cluster.cluster.nodes
    before = [node.facts.vxlan.ifindex for node in nodes]
    cluster.pause()
    cluster.cluster.set_tunnel_port(8473, workers=2)
    assert all(node.facts.vxlan.ifindex != old for node, old in zip(nodes, before, strict=True))
    cluster.resume()
    wanted = {pod.ipv4: {pod.identity} for pod in (cluster.cluster.pod("1/pod-1"), cluster.cluster.pod("2/pod-1"))}
    with TunnelCapture(nodes[0].netns(OUTSIDE), 8473) as capture:
        assert wanted.items() <= capture.identities(list(wanted)).items()
    cluster.reload()


def small_packets(cluster: Cluster) -> list[Flow]:
    """Return the default flows without the packets that fill an MTU: they would not fit into a smaller one."""
    return [replace(flow, sizes=()) for flow in cluster_flows(cluster.nodes)]


@pytest.mark.parametrize("network", NETWORKS[::3])
@pytest.mark.parametrize("mtu", [1400, 9000], ids=["smaller", "larger"])
@pytest.mark.cluster(policy=None, flows=small_packets)
def test_mtu(cluster: ClusterScenario, network: str, mtu: int) -> None:
    """In place: no device is made anew, no connection notices."""
    nodes = cluster.cluster.nodes
    before = [node.facts for node in nodes]
    tunnel = VXLAN_OVERHEAD if network == "tunnel" else 0
    assert _fits(cluster, 1500 - tunnel)
    assert not _fits(cluster, 1500 - tunnel + 1)
    cluster.cluster.set_mtu(mtu, workers=2)
    assert [node.facts for node in nodes] == before
    assert cluster.silence() == []
    assert _fits(cluster, mtu - tunnel)
    assert not _fits(cluster, mtu - tunnel + 1)


def _fits(cluster: ClusterScenario, size: int) -> bool:
    """Send an unfragmented IPv4 packet of `size` bytes from a pod to one of the other node.

    Tells whether it fits: it must arrive then, and else the sender's kernel must refuse it (EMSGSIZE).
    """
    sender, receiver = cluster.cluster.pod("1/pod-1"), cluster.cluster.pod("2/pod-1")
    deadline = time.monotonic() + 5 * slowness()
    source = Address(str(cluster.cluster.node(1).netns("pod-1")), str(sender.ipv4), 0)
    target = Address(str(cluster.cluster.node(2).netns("pod-1")), str(receiver.ipv4), 7999)
    with (
        bound_socket(source, socket.SOCK_DGRAM, deadline) as out,
        bound_socket(target, socket.SOCK_DGRAM, deadline) as into,
    ):
        allow_fragments(out, False)
        into.settimeout(PATIENCE * slowness())
        try:
            out.sendto(bytes(size - IP_AND_UDP), (target.ip, target.port))
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            return False
        assert len(into.recv(1 << 16)) == size - IP_AND_UDP
        return True
