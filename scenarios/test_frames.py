"""Frames that no socket sends: a pod that lies, breaks rules or uses rare headers, and what the programs make of them.

Every frame is followed to its end: dropped for the one reason, counted once, or delivered as it must be, byte by byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from reloadlab import (
    HOST,
    METRIC_EGRESS,
    METRIC_INGRESS,
    NODE,
    Address,
    Probe,
    Scenario,
    ends,
    enter_netns,
    exchange,
    run_tool,
)
from scenarios.frames import (
    AUTHENTICATION,
    BROADCAST,
    DESTINATION,
    ETH_P_IPV6,
    HOP_BY_HOP,
    ICMPV6,
    NO_NEXT_HEADER,
    SCTP,
    UDP,
    advertisement,
    arp,
    datagram,
    eth,
    extension,
    icmp6,
    ipv4,
    ipv6,
    solicitation,
    source_option,
)
from scenarios.rawframes import ARP_REPLY, NOWHERE, PORT, SOURCE_PORT, RawFrames, Where, raw_frames
from scenarios.tables import PODS, POLICY, SILENT

pytestmark = [
    pytest.mark.own_sources("what no socket sends: other C sources have drop reasons and answers of their own"),
    pytest.mark.node(policy=None),
]

INVALID_SOURCE, INVALID, UNKNOWN_L4, UNKNOWN_L3, UNROUTABLE, EXTENSIONS, NO_ETHERNET = 132, 134, 137, 139, 151, 156, 166
"""Why frames are dropped (bpf/lib/drop.h)."""
LINK_LOCAL, ALL_ROUTERS = IPv6Address("fe80::bb:1"), IPv6Address("ff02::16")
STALE_MAC = "02:ee:00:00:00:0e"
ECHO_ID = 77
NO_OPERATION = b"\1\1\1\0"
"""Options of IPv4: three of no operation, and the end."""
NEIGHBOUR_ADVERTISEMENT, ECHO_REQUEST, LISTENER_REPORT = 136, 128, 143

BY_PORT = [
    {
        "name": "by port",
        "endpointSelector": {"matchLabels": {"app": "server"}},
        "ingress": [
            {
                "fromEndpoints": [{"matchLabels": {"app": "client"}}],
                "toPorts": [{"ports": [{"port": "53", "protocol": protocol} for protocol in ("UDP", "SCTP")]}],
            },
            {"fromCIDR": ["10.244.0.0/16"], "toPorts": [{"ports": [{"port": "9", "protocol": "UDP"}]}]},
        ],
    }
]
"""What the server takes: only packets whose ports were found where they are. An address range has an identity for it:
no address in the range is a pod's because of that.
"""


def network(name: str, *, off: bool = True, **options: Any) -> Any:
    return pytest.param(off, id=name, marks=pytest.mark.node(pods=PODS, **options))


HOST_FIREWALL = ("ENABLE_HOST_FIREWALL", "1")
NETWORKS = (
    network("off"),
    network("endpoint-routes", off=False, endpoint_routes=True),
    network("host-firewall", off=False, endpoint_routes=True, agent={"defines": (HOST_FIREWALL,)}),
)


@pytest.mark.parametrize("off", NETWORKS)
def test_before_and_after_a_reload(scenario: Scenario, off: bool) -> None:
    """The same frames meet the programs of two loads."""
    scenario.agent.apply_policies(BY_PORT)
    with raw_frames(scenario, "client", "server") as frames:
        for _ in range(2):
            what_is_delivered(frames)
            what_is_dropped(frames, off=off)
            neighbours(frames)
            hops(frames, off=off)
            scenario.reload("client", "server", "host")
    scenario.expect(drops=dict(frames.drops))
    scenario.agent.apply_policies([])


@pytest.mark.parametrize("off", NETWORKS)
def test_neighbour_discovery(scenario: Scenario, off: bool) -> None:
    """It needs no rule between a pod and its node; between two pods, or from afar, it does."""
    scenario.agent.apply_policies(SILENT)
    drops: Counter[Where] = Counter()
    for source, target, hops, direction in (
        ("server", "stranger", 255, METRIC_EGRESS),
        ("stranger", "client", 64, METRIC_INGRESS),
    ):
        with raw_frames(scenario, source, target) as frames:
            tag, one, other = frames.tag(), frames.client, frames.server
            body = icmp6(one.ipv6, other.ipv6, bytes((NEIGHBOUR_ADVERTISEMENT, 0)) + bytes(6) + tag)
            frame = frames.frame(ipv6(one.ipv6, other.ipv6, body, next_header=ICMPV6, hops=hops))
            frames.expect_refusal(f"advertisement of {source}, {hops} hops left", tag, frame, (POLICY, direction))
        drops += frames.drops
    ask_for_the_client(scenario)
    scenario.agent.apply_policies([])
    scenario.expect(drops=dict(drops))


def ask_for_the_client(scenario: Scenario) -> None:
    """Let the host forget the client's MAC, and ping it."""
    client = scenario.node.pod("client")
    with enter_netns(scenario.node.netns(NODE)):
        run_tool(["ip", "neigh", "flush", "dev", client.ifname])
    here, there = ends(scenario.node)[HOST], ends(scenario.node)["client"]
    for which in (1, 2):
        host, pod = Address(here[0], str(here[which]), ECHO_ID), Address(there[0], str(there[which]), 0)
        assert exchange(host, pod, Probe("icmp")).answered == 2


def what_is_delivered(frames: RawFrames) -> None:
    """Deliver datagrams with options and extension headers, whose ports a rule names, one hop farther."""
    client, server = frames.client, frames.server
    for version in (4, 6):
        tag = frames.tag()
        packet = frames.packet(version, tag)
        frames.expect_arrival(f"IPv{version}", tag, frames.frame(packet), frames.delivered(packet))
    tag = frames.tag()
    message = datagram(client.ipv4, server.ipv4, tag, sport=SOURCE_PORT, dport=PORT)
    packet = ipv4(client.ipv4, server.ipv4, message, options=NO_OPERATION)
    frames.expect_arrival("IPv4 options", tag, frames.frame(packet), frames.delivered(packet))
    for what, kind, wrap in EXTENDED:
        tag = frames.tag()
        message = datagram(client.ipv6, server.ipv6, tag, sport=SOURCE_PORT, dport=PORT)
        packet = ipv6(client.ipv6, server.ipv6, wrap(UDP, message), next_header=kind)
        frames.expect_arrival(f"IPv6 {what}", tag, frames.frame(packet), frames.delivered(packet))
    tag = frames.tag()
    ports = SOURCE_PORT.to_bytes(2, "big") + PORT.to_bytes(2, "big")
    packet = ipv4(client.ipv4, server.ipv4, ports + bytes(8) + tag, protocol=SCTP)
    frames.expect_arrival("SCTP", tag, frames.frame(packet), frames.delivered(packet))


def options_header(next_header: int, payload: bytes) -> bytes:
    """Return a header of 16 bytes with an option that whoever does not know it skips (RFC 4727, 3.3.1)."""
    return bytes((next_header, 1, 0x1E, 12)) + bytes(12) + payload


def authentication(next_header: int, payload: bytes) -> bytes:
    """Return a header of 16 bytes, whose length is told in words of four, less two (RFC 4302, 2.2)."""
    return bytes((next_header, 2)) + bytes(14) + payload


EXTENDED: tuple[tuple[str, int, Callable[[int, bytes], bytes]], ...] = (
    ("hop-by-hop options", HOP_BY_HOP, options_header),
    ("destination options", DESTINATION, options_header),
    ("authentication header", AUTHENTICATION, authentication),
)


def what_is_dropped(frames: RawFrames, *, off: bool) -> None:
    """Drop what no pod may send, or what cannot be read, where it comes in."""
    spec = frames.scenario.node.spec
    for what, reason, make in REFUSED:
        tag = frames.tag()
        frames.expect_drop(what, tag, make(frames, tag), (reason, METRIC_EGRESS))
    # With endpoint routes no route leads to such an address.
    for version, unknown in ((4, spec.pod_cidr4[-3]), (6, spec.pod_cidr6[-3])) if off else ():
        tag = frames.tag()
        frame = frames.frame(frames.packet(version, tag, target=unknown))
        frames.expect_drop(f"IPv{version} for an unknown pod", tag, frame, (UNROUTABLE, METRIC_INGRESS))


def forged4(frames: RawFrames, tag: bytes) -> bytes:
    """Return a datagram to the outside in the name of the server."""
    source, target = frames.server.ipv4, frames.scenario.node.spec.outside4.ip
    return frames.frame(ipv4(source, target, datagram(source, target, tag, sport=1, dport=2)))


def forged6(frames: RawFrames, tag: bytes) -> bytes:
    source, target = frames.server.ipv6, frames.scenario.node.spec.outside6.ip
    return frames.frame(ipv6(source, target, datagram(source, target, tag, sport=1, dport=2)))


def forged_echo(frames: RawFrames, tag: bytes) -> bytes:
    source, target = frames.server.ipv6, frames.scenario.node.spec.outside6.ip
    echo = icmp6(source, target, bytes((ECHO_REQUEST, 0)) + bytes(6) + tag)
    return frames.frame(ipv6(source, target, echo, next_header=ICMPV6))


def from4(frames: RawFrames, tag: bytes, *, protocol: int = UDP, claimed: int = 0) -> bytes:
    """Return the tag in an IPv4 packet that claims to be so many bytes longer than it is."""
    total = 20 + len(tag) + claimed
    return frames.frame(ipv4(frames.client.ipv4, frames.server.ipv4, tag, protocol=protocol, total=total))


def from6(frames: RawFrames, payload: bytes, *, next_header: int = UDP, claimed: int = 0) -> bytes:
    """The same for IPv6."""
    length = len(payload) + claimed
    return frames.frame(ipv6(frames.client.ipv6, frames.server.ipv6, payload, next_header=next_header, length=length))


def ethernet(frames: RawFrames, tag: bytes, *, kind: int) -> bytes:
    return eth(frames.client.node_mac, frames.client.mac, kind, tag * 4)


def five_headers(frames: RawFrames, tag: bytes) -> bytes:
    for kind in (UDP, *[DESTINATION] * 4):
        tag = extension(kind, tag)
    return from6(frames, tag, next_header=DESTINATION)


REFUSED: tuple[tuple[str, int, Callable[[RawFrames, bytes], bytes]], ...] = (
    ("IPv4 of another pod", INVALID_SOURCE, forged4),
    ("IPv6 of another pod", INVALID_SOURCE, forged6),
    ("ICMPv6 of another pod", INVALID_SOURCE, forged_echo),
    ("unknown EtherType", UNKNOWN_L3, partial(ethernet, kind=0x88B5)),
    ("IEEE 802.3", NO_ETHERNET, partial(ethernet, kind=64)),
    ("IPv4, too long", INVALID, partial(from4, claimed=1)),
    ("IPv6, too long", INVALID, partial(from6, claimed=1)),
    ("IPv4, unknown protocol", UNKNOWN_L4, partial(from4, protocol=253)),
    ("IPv6, unknown protocol", UNKNOWN_L4, partial(from6, next_header=253)),
    ("IPv6, no next header", EXTENSIONS, partial(from6, next_header=NO_NEXT_HEADER)),
    ("IPv6, five extension headers", EXTENSIONS, five_headers),
)
"""Why each of these is dropped, and how it is made with a tag."""


BEHIND_HOPS = 22
"""Bytes of a frame up to its addresses (IPv6, ARP): what comes behind them is the same after a hop."""


def neighbours(frames: RawFrames) -> None:
    """Answer questions for the MAC of others, and none for the pod's own; the server gets none of all that."""
    client, node = frames.client, frames.scenario.node
    router = node.spec.router6
    frames.barrier()

    def arp_answer(frame: bytes) -> bool:
        return frame[12:14] == b"\x08\x06" and frame[20:22] == ARP_REPLY and frame[28:32] == client.ipv4.packed

    probe = arp(1, BROADCAST, client.mac, (client.mac, IPv4Address(0)), (NOWHERE, client.ipv4))
    frames.expect_nothing("ARP probe for the own address", probe[BEHIND_HOPS:], probe, arp_answer)

    def neighbour_answer(frame: bytes) -> bool:
        return frame[20:21] == bytes((ICMPV6,)) and frame[54:55] == bytes((NEIGHBOUR_ADVERTISEMENT,))

    ask = solicitation(client.mac, client.ipv6, router, options=source_option(client.mac))
    expected = advertisement(client.mac, client.node_mac, router, client.ipv6)
    frames.expect_answer("solicitation", ask, neighbour_answer, expected)
    for address in (client.ipv6, LINK_LOCAL):
        probe = solicitation(client.mac, IPv6Address(0), address)
        frames.expect_nothing(f"probe for duplicates of {address}", probe[BEHIND_HOPS:], probe, neighbour_answer)
    own = solicitation(client.mac, LINK_LOCAL, client.ipv6)
    frames.expect_nothing("solicitation for the own address", own[BEHIND_HOPS:], own, neighbour_answer)
    far = solicitation(client.mac, client.ipv6, router, options=source_option(client.mac), hops=254)
    frames.expect_drop("solicitation from afar", far[BEHIND_HOPS:], far, (INVALID, METRIC_EGRESS))
    report = icmp6(LINK_LOCAL, ALL_ROUTERS, bytes((LISTENER_REPORT, 0)) + bytes(6))
    alert = ipv6(LINK_LOCAL, ALL_ROUTERS, bytes((ICMPV6, 0, 5, 2, 0, 0, 1, 0)) + report, next_header=HOP_BY_HOP, hops=1)
    listener = eth("33:33:00:00:00:16", client.mac, ETH_P_IPV6, alert)
    frames.expect_nothing("multicast listener report", listener[BEHIND_HOPS:], listener, neighbour_answer)


def has(tag: bytes, frame: bytes) -> bool:
    return tag in frame


def hops(frames: RawFrames, *, off: bool) -> None:
    """Drop what has no hop left, or have the stack tell the sender; address to the stack what it routes."""
    node = frames.scenario.node
    for version in (4, 6):
        tag = frames.tag()
        frame = frames.frame(frames.packet(version, tag, hops=1))
        if off:
            frames.expect_drop(f"IPv{version} without a hop left", tag, frame, (INVALID, METRIC_EGRESS))
        else:
            frames.expect_answer(f"IPv{version} without a hop left", frame, partial(has, tag))
    # The stack takes what is addressed to the device, or what a program has said is for the host.
    if off or HOST_FIREWALL in frames.scenario.agent.config.defines:
        for version, router in ((4, node.spec.router4), (6, node.spec.router6)):
            tag = frames.tag()
            stale = frames.frame(frames.packet(version, tag, target=router), dst=STALE_MAC)
            # Nobody listens there: the host says so.
            frames.expect_answer(f"IPv{version} to an old MAC", stale, partial(has, tag))
