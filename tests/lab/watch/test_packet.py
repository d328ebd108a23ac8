"""Packets by their bytes."""

from __future__ import annotations

import struct

import pytest

from lab.watch.packet import IPV4, IPV6, decode, decode_frame, summary

MACS = bytes(12)
PORTS = struct.pack("!HH", 40000, 80)


def ipv4(protocol: int, rest: bytes, offset: int = 0) -> bytes:
    ip = bytes((0x45, 0, 0, 0, 0, 0)) + offset.to_bytes(2, "big") + bytes((64, protocol, 0, 0))
    return MACS + b"\x08\x00" + ip + bytes((10, 0, 0, 1)) + bytes((10, 0, 0, 2)) + rest


def ipv6(protocol: int, rest: bytes) -> bytes:
    address = b"\xfd" + bytes(14)
    return MACS + b"\x86\xdd" + bytes((0x60, 0, 0, 0, 0, 0, protocol, 64)) + address + b"\1" + address + b"\2" + rest


TCP = ipv4(6, PORTS + bytes(9) + bytes((0x12,)) + bytes(6))


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        pytest.param(ipv4(17, PORTS), "10.0.0.1:40000 -> 10.0.0.2:80 udp", id="UDP"),
        pytest.param(ipv4(17, PORTS, offset=5), "10.0.0.1 -> 10.0.0.2 udp", id="later fragment"),
        pytest.param(ipv4(1, b"\x03\x04"), "10.0.0.1 -> 10.0.0.2 icmp type 3 code 4", id="ICMP"),
        pytest.param(ipv4(47, b""), "10.0.0.1 -> 10.0.0.2 protocol 47", id="GRE"),
        pytest.param(ipv6(17, PORTS), "[fd00::1]:40000 -> [fd00::2]:80 udp", id="IPv6"),
        pytest.param(ipv6(58, b"\x87\0"), "fd00::1 -> fd00::2 icmpv6 type 135 code 0", id="ICMPv6"),
        pytest.param(MACS + b"\x08\x06" + bytes(28), "arp", id="ARP"),
        pytest.param(MACS + b"\x88\xcc", "14 bytes, protocol 0x88cc", id="LLDP"),
        pytest.param(b"", "0 bytes, protocol 0x0000", id="nothing"),
    ],
)
def test_packet_summaries(frame: bytes, words: str) -> None:
    assert summary(frame) == words


@pytest.mark.parametrize("length", range(len(TCP)))
def test_truncated_packets_have_a_summary(length: int) -> None:
    assert summary(TCP[:length])


def test_the_packet_inside_vxlan_is_found_by_the_tunnels_port() -> None:
    vxlan = struct.pack("!HHHHII", 50000, 8472, 0, 0, 1 << 27, 1001 << 8)
    outer = decode_frame(ipv4(17, vxlan + ipv6(17, PORTS)))
    assert outer is not None
    assert str(outer.tunnelled(8472)) == "[fd00::1]:40000 -> [fd00::2]:80 udp"
    assert outer.tunnelled(4789) is None


def test_a_listener_report_is_icmpv6_behind_its_hop_by_hop_header() -> None:
    found = decode_frame(ipv6(0, bytes((58, 0, 5, 2, 0, 0, 1, 0)) + b"\x8f\0"))
    assert found is not None
    assert found.icmp == (143, 0)


@pytest.mark.parametrize("kind", [IPV4, IPV6])
def test_a_header_that_is_cut_off_is_no_packet(kind: int) -> None:
    assert decode(kind, bytes(19)) is None
