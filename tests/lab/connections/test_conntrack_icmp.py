"""Connection tracking and the errors of ICMP: the kernel that has sent a packet is told what became of it.

The client lets nobody in, not even the host: an error arrives because its connection is known, or not at all.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from lab.agent.agent import Agent
from lab.agent.cluster import Cluster, cluster_specs
from lab.node.node import Node
from lab.node.topology import NODE, OUTSIDE, UPLINK, PodSpec
from lab.system.netns import enter, sysctl
from lab.system.sockets import Address, bound_socket
from scenarios import frames
from tests.lab import labs, wires
from tests.lab.conversations import (
    BULK,
    CLIENT,
    DEADLINE,
    DENIED_IN,
    DENIED_OUT,
    SERVER,
    UDP,
    Pods,
    loaded,
    policies,
    transfer,
    until,
)
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged

PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}
"""Type and code by IP version (RFC 792, RFC 4443)."""

IP_MTU, IPV6_MTU = 14, 24
"""What Python's socket module lacks of uapi's in.h and in6.h."""

NARROW = 1400
"""Bytes that pass the link behind the world outside."""
FAR = {4: ("198.51.100.1/30", "198.51.100.2/30"), 6: ("2001:db8:51::1/64", "2001:db8:51::2/64")}
"""Both ends of that link."""

PROHIBITED, UNREACHABLE, NOWHERE = "prohibit", "unreachable", "no route"
NETWORKS = {
    (OUTSIDE, PROHIBITED): ("203.0.113.0/27", "2001:db8:1::/64"),
    (OUTSIDE, UNREACHABLE): ("203.0.113.32/27", "2001:db8:2::/64"),
    (OUTSIDE, NOWHERE): ("203.0.113.64/27", "2001:db8:3::/64"),
    (NODE, PROHIBITED): ("203.0.113.96/27", "2001:db8:4::/64"),
    (NODE, UNREACHABLE): ("203.0.113.128/27", "2001:db8:5::/64"),
}
"""Where a router leads nowhere, and says so."""
ERRORS = {
    PROHIBITED: {4: errno.EHOSTUNREACH, 6: errno.EACCES},
    UNREACHABLE: {4: errno.EHOSTUNREACH, 6: errno.ENETUNREACH},
    NOWHERE: {4: errno.ENETUNREACH, 6: errno.ENETUNREACH},
}
"""What the kernel makes of the codes in these errors (net/ipv4/icmp.c, net/ipv6/icmp.c)."""


@dataclass(frozen=True, slots=True)
class World:
    """A loaded node, and a namespace behind the world outside, to which large packets do not get."""

    agent: Agent
    far: str


@pytest.fixture(scope="module", params=[False, True], ids=["routes-off", "routes-on"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with loaded(endpoint_routes=request.param) as agent, wires.namespace() as far:
        node = agent.node
        outside = str(node.netns(OUTSIDE))
        with enter(node.netns(OUTSIDE)):
            sysctl((("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")))
        link = ("link", "add", "far", "mtu", str(NARROW), "type", "veth", "peer", "name", UPLINK, "netns", far)
        wires.ip(outside, *link)
        wires.address(outside, "far", *(near for near, _ in FAR.values()))
        wires.address(far, UPLINK, *(end for _, end in FAR.values()))
        for near, _ in FAR.values():
            wires.ip(far, "route", "add", "default", "via", near.partition("/")[0])
        for (name, kind), networks in NETWORKS.items():
            for network in networks:
                if kind != NOWHERE:
                    wires.ip(str(node.netns(name)), "route", "add", kind, network)
        yield World(agent, far)


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def pods(world: World, request: pytest.FixtureRequest) -> Iterator[Pods]:
    with ExitStack() as stack:
        yield Pods(world.agent, request.param, stack)


# --- unreachable ---


def test_a_port_where_nobody_is(pods: Pods) -> None:
    """The server may say nothing of its own, the client may be told nothing: but of its own packet both."""
    client, server = pods.bound(CLIENT, kind=socket.SOCK_DGRAM), pods.bound(SERVER, kind=socket.SOCK_DGRAM)
    flow = pods.flow(client, server, UDP)
    client.connect(server.getsockname()[:2])
    server.close()
    with pods.dropping():
        client.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)
    for out in (True, False):
        entry = pods.entry(flow, out=out)
        assert entry is not None
        assert entry.rx_packets + entry.tx_packets == 1, "an error is no packet of the connection"


def test_an_answer_that_nobody_waits_for(pods: Pods) -> None:
    """Who has begun and is gone says so to who answers, whatever the policy has become."""
    client, server = pods.bound(CLIENT, kind=socket.SOCK_DGRAM), pods.bound(SERVER, kind=socket.SOCK_DGRAM)
    client.sendto(b"question", server.getsockname()[:2])
    server.connect(client.getsockname()[:2])
    assert server.recv(64) == b"question"
    client.close()
    with pods.allowed(client_out=False, server_in=False), pods.dropping():
        server.send(b"answer")
        with pytest.raises(ConnectionRefusedError):
            server.recv(1)


def test_routers_that_lead_nowhere(pods: Pods) -> None:
    """TCP learns that there is no way, from the world outside and from the node itself."""
    found = dict.fromkeys(NETWORKS, errno.EINPROGRESS)
    clients = {case: pods.bound(CLIENT) for case in NETWORKS}

    def told() -> bool:
        for case, client in clients.items():
            if found[case] == errno.EINPROGRESS:
                found[case] = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.EINPROGRESS
        return errno.EINPROGRESS not in found.values()

    with pods.dropping():
        for case, networks in NETWORKS.items():
            network = networks[pods.version == 6].partition("/")[0]
            clients[case].setblocking(False)
            found[case] = clients[case].connect_ex((str(ip_address(network) + 1), 80))
        until(told)
    assert found == {(router, kind): ERRORS[kind][pods.version] for router, kind in NETWORKS}


def test_an_error_about_nothing(pods: Pods) -> None:
    """Word for word the same message is believed once the packet has been sent that it is about, and not before."""
    spec = pods.node.spec
    outside = str((spec.outside4 if pods.version == 4 else spec.outside6).ip)
    silent = bound_socket(Address(str(pods.node.netns(OUTSIDE)), outside, 0), socket.SOCK_DGRAM, time.monotonic() + 5)
    client = pods.bound(CLIENT, kind=socket.SOCK_DGRAM)
    with silent:
        client.connect(silent.getsockname()[:2])
        with pods.dropping(DENIED_IN):
            complain(pods, OUTSIDE, client, silent)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        with pods.dropping():
            client.send(b"hello")
            complain(pods, OUTSIDE, client, silent)
            with pytest.raises(ConnectionRefusedError):
                client.recv(1)


def test_who_may_not_open_a_connection_may_not_complain_either(pods: Pods) -> None:
    client, server = pods.bound(CLIENT, kind=socket.SOCK_DGRAM), pods.bound(SERVER, kind=socket.SOCK_DGRAM)
    client.connect(server.getsockname()[:2])
    with pods.dropping(DENIED_OUT):
        complain(pods, SERVER, client, server)
    with pods.allowed(server_out=True), pods.dropping(DENIED_IN):
        complain(pods, SERVER, client, server)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_errors_are_for_who_has_sent_the_packet(pods: Pods) -> None:
    """The connection is known, but none of the server's."""
    client, server = pods.bound(CLIENT, kind=socket.SOCK_DGRAM), pods.bound(SERVER, kind=socket.SOCK_DGRAM)
    client.sendto(b"hello", server.getsockname()[:2])
    assert server.recv(64) == b"hello"
    with pods.allowed(server_in=False), pods.dropping(DENIED_IN):
        complain(pods, OUTSIDE, client, server, to=server)


def complain(
    pods: Pods, name: str, client: socket.socket, server: socket.socket, *, to: socket.socket | None = None
) -> None:
    """Say, in somebody's name, that a packet of the client to the server has found no port; to the client, or `to`."""
    kind, code = PORT_UNREACHABLE[pods.version]
    sport, dport = client.getsockname()[1], server.getsockname()[1]
    about = frames.udp(sport=sport, dport=dport)
    source, target = client.getsockname()[0], server.getsockname()[0]
    if pods.version == 4:
        quoted = frames.ipv4(IPv4Address(source), IPv4Address(target), about)
    else:
        quoted = frames.ipv6(IPv6Address(source), IPv6Address(target), about)
    message = bytearray(frames.icmp(kind, quoted=quoted))
    message[1] = code
    message[2:4] = frames.checksum(bytes(message)).to_bytes(2, "big")
    number = socket.IPPROTO_ICMP if pods.version == 4 else socket.IPPROTO_ICMPV6
    with enter(pods.node.netns(name)), socket.socket(client.family, socket.SOCK_RAW, number) as raw:
        raw.sendto(message, ((to or client).getsockname()[0], 0))


# --- path MTU ---


def test_a_narrow_link_far_away(pods: Pods, world: World) -> None:
    """The first large packet does not pass, a router in the world says so, and TCP sends smaller ones."""
    address = FAR[pods.version][1].partition("/")[0]
    client = pods.bound(CLIENT)
    with bound_socket(Address(world.far, address, 0), socket.SOCK_STREAM, time.monotonic() + 5) as listener:
        listener.listen()
        with pods.dropping():
            client.connect(listener.getsockname()[:2])
            assert mtu(client) == pods.node.spec.mtu
            with listener.accept()[0] as server:
                server.settimeout(DEADLINE)
                transfer(client, server, BULK)
        assert mtu(client) == NARROW
        assert remembered(pods.node.netns(CLIENT), address) == NARROW


def test_a_tunnel_that_the_pods_do_not_know_of() -> None:
    """They send what fits their link; the node, with endpoint routes or without, says that the tunnel is smaller."""
    pair = (PodSpec(CLIENT), PodSpec(SERVER))
    specs = cluster_specs(unique_name("ct")[:28], 2, pods=pair, tunnel=True, each={2: {"endpoint_routes": True}})
    with Cluster(specs) as cluster:
        cluster.start()
        cluster.apply_policies(policies())
        for node in cluster.nodes:
            for router, words in ((node.spec.router4, []), (node.spec.router6, ["-6"])):
                route = ("route", "replace", "default", "via", str(router), "dev", UPLINK, "mtu", str(node.spec.mtu))
                for pod in pair:
                    wires.ip(str(node.netns(pod.name)), *words, *route)
        for here, there in (cluster.nodes, cluster.nodes[::-1]):
            for version in (4, 6):
                across(here, there, version)


def across(here: Node, there: Node, version: int) -> None:
    """Send much from the client of a node to the server of another."""

    def bound(node: Node, name: str) -> socket.socket:
        address = node.pod(name).ipv4 if version == 4 else node.pod(name).ipv6
        wanted = Address(str(node.netns(name)), str(address), 0)
        return bound_socket(wanted, socket.SOCK_STREAM, time.monotonic() + DEADLINE)

    with bound(there, SERVER) as listener, bound(here, CLIENT) as client:
        listener.listen()
        client.settimeout(DEADLINE)
        client.connect(listener.getsockname()[:2])
        with listener.accept()[0] as server:
            server.settimeout(DEADLINE)
            transfer(client, server, BULK)
        assert mtu(client) == here.spec.route_mtu < here.spec.mtu
        assert remembered(here.netns(CLIENT), listener.getsockname()[0]) == here.spec.route_mtu


def mtu(sock: socket.socket) -> int:
    """Return the path MTU by which a connected socket sends."""
    v4 = sock.family == socket.AF_INET
    return sock.getsockopt(socket.IPPROTO_IP if v4 else socket.IPPROTO_IPV6, IP_MTU if v4 else IPV6_MTU)


def remembered(netns: Path, address: str) -> int:
    """Return the path MTU that a pod's kernel has learned."""
    (route,) = labs.ip(netns, "route", "get", address)
    return int(route["metrics"][0]["mtu"])
