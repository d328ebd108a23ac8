"""What another node may say through the tunnel, and what it may not: VXLAN made by hand, sent from outside."""

from __future__ import annotations

import itertools
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address

import pytest

from reloadlab import (
    HOST_ID,
    METRIC_INGRESS,
    OUTSIDE,
    WORLD_ID,
    Address,
    ClusterScenario,
    FrameSocket,
    PodFacts,
    bound_socket,
    is_ours,
    packet_counters,
    slowness,
)
from scenarios.frames import ETH_P_IP, ETH_P_IPV6, IPV4_LEN, IPV6_LEN, datagram, eth, ipv4, ipv6, vxlan
from scenarios.tables import PODS, POLICY

pytestmark = pytest.mark.cluster(nodes=2, pods=PODS, tunnel=True, policy=None)

INVALID_IDENTITY = 171
"""Why a packet from another node that says that it is this host is dropped (bpf/lib/drop.h)."""
REFUSED = (POLICY, METRIC_INGRESS)
MAC = "02:00:00:00:00:01"
PORT = 2
PATIENCE = 5.0
"""Seconds that a packet may take, on an ordinary machine."""
KNOWN, UNKNOWN = IPv4Address("203.0.113.7"), IPv4Address("203.0.113.8")
"""Addresses outside that no node has; a policy names one of them."""


@dataclass
class Forger:
    """Sends datagrams to the first node's server by its tunnel, and says what has become of them."""

    cluster: ClusterScenario
    outside: socket.socket
    at_server: FrameSocket
    drops: Counter[tuple[int, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _number: int = 0

    def send(self, vni: int, source: IPv4Address, dropped: tuple[int, int] | None = None) -> None:
        """Send a datagram with this VNI and inner source address; it must arrive, or be dropped for this."""
        node = self.cluster.cluster.node(1)
        target, self._number = node.pod("server").ipv4, self._number + 1
        tag, before = f"<forged {self._number:06}>".encode(), self._counted()
        inner = eth(MAC, MAC, ETH_P_IP, ipv4(source, target, datagram(source, target, tag, sport=1, dport=PORT)))
        self.outside.sendto(vxlan(vni, inner), (str(node.spec.node4.ip), node.spec.tunnel_port))
        what = f"VNI {vni} from {source}"
        if dropped is None:
            if self.at_server.receive(lambda frame: tag in frame, timeout=PATIENCE * slowness()) is None:
                self.wrong.append(f"{what}: dropped {dict(self._counted() - before)}")
            return
        self.drops[dropped] += 1
        deadline = time.monotonic() + PATIENCE * slowness()
        while not (moved := self._counted() - before) and time.monotonic() < deadline:
            time.sleep(0.005)
        if moved != Counter({dropped: 1}):
            self.wrong.append(f"{what}: dropped {dict(moved)}, not {dropped} once")
        if self.at_server.receive(lambda frame: tag in frame, timeout=0) is not None:
            self.wrong.append(f"{what}: it arrived")

    def _counted(self) -> Counter[tuple[int, int]]:
        counters = packet_counters(self.cluster.cluster.node(1))
        return Counter({key: counters.get(key, 0) for key in (REFUSED, (INVALID_IDENTITY, METRIC_INGRESS))})


def only(peer: Mapping[str, Sequence[str]]) -> list[dict[str, object]]:
    """Return a policy by which the server takes only what comes from a peer."""
    return [{"name": "only", "endpointSelector": {"matchLabels": {"app": "server"}}, "ingress": [dict(peer)]}]


def test_identities_of_forged_packets(cluster: ClusterScenario) -> None:
    """Nobody but this host is the host; an address range is known by the address, whatever the VNI says."""
    node, deadline = cluster.cluster.node(1), time.monotonic() + PATIENCE * slowness()
    outside = Address(str(node.netns(OUTSIDE)), str(node.spec.outside4.ip), 0)
    server = Address(str(node.netns("server")), str(node.pod("server").ipv4), PORT)
    with (
        bound_socket(outside, socket.SOCK_DGRAM, deadline) as sender,
        # It takes what arrives: nobody else does, and the server would refuse it, to an address without a route.
        bound_socket(server, socket.SOCK_DGRAM, deadline),
        FrameSocket(node.netns("server"), node.pod("server").inner_ifname) as at_server,
    ):
        forger = Forger(cluster, sender, at_server)
        for _ in range(2):
            cluster.cluster.apply_policies(only({"fromEntities": ["host"]}))
            forger.send(HOST_ID, KNOWN, (INVALID_IDENTITY, METRIC_INGRESS))
            forger.send(WORLD_ID, node.spec.router4, REFUSED)
            cluster.cluster.apply_policies(only({"fromCIDR": [f"{KNOWN}/32"]}))
            if is_ours(cluster.agents[0].config.library):
                forger.send(WORLD_ID, KNOWN)
            else:
                cluster.leave_out("address ranges behind a tunnel: other C sources take the VNI for it, always")
            forger.send(WORLD_ID, UNKNOWN, REFUSED)
            cluster.reload("1/overlay", "1/server")
    cluster.cluster.apply_policies([])
    cluster.expect_on(1, drops=dict(forger.drops))
    assert not forger.wrong, "\n".join(forger.wrong)


@pytest.mark.own_sources("what a tunnel has no room for: with other C sources its device answers, as the target")
def test_what_does_not_fit(cluster: ClusterScenario) -> None:
    """A packet a byte larger than the tunnel takes is refused with the path MTU; one that fits arrives."""
    node = cluster.cluster.node(1)
    client, server = node.pod("client"), cluster.cluster.node(2).pod("server")
    with (
        FrameSocket(node.netns("client"), client.inner_ifname) as here,
        FrameSocket(cluster.cluster.node(2).netns("server"), server.inner_ifname) as there,
    ):
        for version, over in itertools.product((4, 6), (0, 1)):
            tag = f"<IPv{version} {over} over>".encode()
            packet = sized(client, server, version, node.spec.route_mtu + over, tag)
            here.send(eth(client.node_mac, client.mac, ETH_P_IP if version == 4 else ETH_P_IPV6, packet))
            arrived = (here if over else there).receive(partial(_has, tag), timeout=PATIENCE * slowness())
            assert arrived is not None, f"IPv{version}: {over} bytes over"
            # The node says so, before the packet is in the tunnel; whose transport would say so in the server's name.
            speaker, server_ip = (arrived[26:30], server.ipv4) if version == 4 else (arrived[22:38], server.ipv6)
            assert not over or speaker != server_ip.packed, f"IPv{version}: refused in the name of the server"
            if over:
                assert _refused_with(arrived, version) == node.spec.route_mtu, f"IPv{version}: {arrived.hex()}"
                assert there.receive(partial(_has, tag), timeout=0) is None, f"IPv{version}: it arrived"


def _refused_with(frame: bytes, version: int) -> int | None:
    """Return the path MTU of an ICMP error that says that a packet is too big (RFC 792 and 1191; RFC 4443)."""
    message = frame[14 + (IPV4_LEN if version == 4 else IPV6_LEN) :]
    if version == 4:
        return int.from_bytes(message[6:8], "big") if message[:2] == b"\3\4" else None
    return int.from_bytes(message[4:8], "big") if message[:1] == b"\2" else None


def sized(source: PodFacts, target: PodFacts, version: int, size: int, tag: bytes) -> bytes:
    """Return an IP packet of this size, bytes."""
    if version == 4:
        payload = tag.ljust(size - IPV4_LEN - 8)
        return ipv4(source.ipv4, target.ipv4, datagram(source.ipv4, target.ipv4, payload, sport=1, dport=2))
    payload = tag.ljust(size - IPV6_LEN - 8)
    return ipv6(source.ipv6, target.ipv6, datagram(source.ipv6, target.ipv6, payload, sport=1, dport=2))


def _has(tag: bytes, frame: bytes) -> bool:
    return tag in frame
