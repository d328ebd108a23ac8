"""Whose a packet is."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address, ip_address

import pytest

from lab.traffic.flows import Flow
from lab.watch.attribution import Ownership
from lab.watch.packet import Packet


def packet(source: str, target: str, protocol: int, data: bytes = b"") -> Packet:
    return Packet(ip_address(source), ip_address(target), protocol, data)


def icmpv6(kind: int, subject: str = "::") -> bytes:
    return struct.pack("!BBHI", kind, 0, 0, 0) + IPv6Address(subject).packed


FLOWS = [
    Flow("a -> b", "", "10.0.0.1", "", "10.0.0.2", "udp", 7007),
    Flow("a -> b tcp", "", "fd00::1", "", "fd00::2", "tcp", 7008),
]


@pytest.mark.parametrize(
    ("sent", "owner"),
    [
        pytest.param(packet("10.0.0.1", "10.0.0.2", 17, struct.pack("!HH", 5, 7007)), "a -> b", id="request"),
        pytest.param(packet("10.0.0.2", "10.0.0.1", 17, struct.pack("!HH", 7007, 5)), "a -> b, reply", id="reply"),
        pytest.param(packet("fd00::1", "fd00::2", 6, struct.pack("!HH", 5, 7008)), "a -> b tcp", id="TCP"),
        pytest.param(
            packet("10.0.0.1", "10.0.0.2", 6, struct.pack("!HH", 5, 7007)),
            "the probe 10.0.0.1:5 -> 10.0.0.2:7007 tcp",
            id="another protocol",
        ),
        pytest.param(packet("10.0.0.1", "10.9.9.9", 17), "10.0.0.1 -> 10.9.9.9 udp", id="a stranger"),
        pytest.param(
            packet("fe80::7", "ff02::1:ff00:1", 58, icmpv6(135, "fe80::1")),
            "the kernel's neighbour solicitation of fe80::1",
            id="link-local neighbour",
        ),
        pytest.param(
            packet("fe80::7", "ff02::1:ff00:2", 58, icmpv6(135, "fd00::2")),
            "fe80::7 -> ff02::1:ff00:2 icmpv6 type 135 code 0",
            id="neighbour that a flow needs",
        ),
        pytest.param(
            packet("fe80::7", "ff02::2", 58, icmpv6(133)), "the kernel's router solicitation", id="router solicitation"
        ),
        pytest.param(
            packet("fe80::7", "ff02::16", 58, icmpv6(143)), "the kernel's multicast listener report", id="MLD"
        ),
        pytest.param(None, "no IP packet", id="ARP"),
    ],
)
def test_whose_a_packet_is(sent: Packet | None, owner: str) -> None:
    assert Ownership(FLOWS).owner(sent) == owner


def test_a_packet_in_a_tunnel_belongs_to_whom_it_carries() -> None:
    inner = bytes((0x45, *bytes(8), 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2)) + struct.pack("!HHHH", 5, 7007, 8, 0)
    vxlan = struct.pack("!HHHHII", 50000, 8472, 0, 0, 1 << 27, 0) + bytes(12) + b"\x08\x00" + inner
    outer = packet("172.16.0.1", "172.16.0.2", 17, vxlan)
    assert Ownership(FLOWS, tunnel_ports=[8472]).owner(outer) == "a -> b"
    assert Ownership(FLOWS).owner(outer) == "172.16.0.1:50000 -> 172.16.0.2:8472 udp"
