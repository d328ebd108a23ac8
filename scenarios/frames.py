"""Frames made by hand, byte by byte: what no socket would send, and what must be on the wire to the byte."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
ICMP, TCP, UDP, SCTP, ICMPV6 = 1, 6, 17, 132, 58
FIN, SYN, RST, ACK = 1, 2, 4, 16
HOP_BY_HOP, FRAGMENT, AUTHENTICATION, NO_NEXT_HEADER, DESTINATION = 0, 44, 51, 59, 60
BROADCAST = "ff:ff:ff:ff:ff:ff"
MORE_FRAGMENTS, DONT_FRAGMENT = 0x2000, 0x4000

ETH_LEN, IPV4_LEN, IPV6_LEN = 14, 20, 40


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071); 0 over data that contains its own."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data)) if len(data) % 2 == 0 else checksum_odd(data)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def checksum_odd(data: bytes) -> int:
    return sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0"))


def eth(dst: str, src: str, protocol: int, payload: bytes = b"") -> bytes:
    """Return an Ethernet II frame; `protocol` is its EtherType."""
    return mac_bytes(dst) + mac_bytes(src) + protocol.to_bytes(2, "big") + payload


def udp(length: int = 32, *, sport: int = 40000, dport: int = 53) -> bytes:
    """Return a datagram of `length` zeros without a checksum, which only IPv4 allows."""
    return struct.pack("!4H", sport, dport, 8 + length, 0) + bytes(length)


def tcp(sport: int, dport: int, flags: int, *, options: int = 0) -> bytes:
    """Return a segment without data; `options` are the bytes of padding in its header."""
    return struct.pack("!HHIIBBHHH", sport, dport, 1, 1, 0x50 + options // 4 * 16, flags, 65535, 0, 0) + bytes(options)


def icmp(kind: int, *, ident: int = 0, quoted: bytes = b"") -> bytes:
    """Return a message of either version: an echo with its id, or an error with the packet that it is about."""
    return struct.pack("!BBHHH", kind, 0, 0, ident, 0) + quoted


def ipv4(
    src: IPv4Address,
    dst: IPv4Address,
    payload: bytes = b"",
    *,
    ttl: int = 64,
    fragment: int = DONT_FRAGMENT,
    protocol: int = UDP,
    first: int = 0x45,
    total: int | None = None,
    options: bytes = b"",
    ident: int = 1,
) -> bytes:
    """Return an IPv4 packet; `first` is version and header length, `total` the length it claims, `ident` its id.

    `options` are whole words of four bytes, which the header's length takes in.
    """
    length = IPV4_LEN + len(options) + len(payload) if total is None else total
    first += len(options) // 4
    fixed = struct.pack("!BBHHHBBH4s4s", first, 0, length, ident, fragment, ttl, protocol, 0, src.packed, dst.packed)
    header = fixed + options
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + payload


def ipv6(
    src: IPv6Address,
    dst: IPv6Address,
    payload: bytes = b"",
    *,
    next_header: int = UDP,
    hops: int = 64,
    version: int = 6,
    length: int | None = None,
) -> bytes:
    """Return an IPv6 packet; `length` is that of the payload that it claims, by default its own."""
    claimed = len(payload) if length is None else length
    return struct.pack("!IHBB", version << 28, claimed, next_header, hops) + src.packed + dst.packed + payload


def extension(next_header: int, payload: bytes, *, words: int = 0) -> bytes:
    """Return an options header of (`words` + 1) * 8 bytes, filled with padding."""
    return bytes((next_header, words)) + bytes(6 + 8 * words) + payload


def fragment_header(next_header: int, offset: int, payload: bytes, *, more: bool, ident: int) -> bytes:
    """Return a part of a datagram behind its fragment header; `offset` is its place in bytes, eight by eight."""
    return struct.pack("!BBHI", next_header, 0, offset | more, ident) + payload


def icmp6(src: IPv6Address, dst: IPv6Address, message: bytes) -> bytes:
    """Return the message with its checksum; the bytes 2 and 3 of it are overwritten."""
    return _summed(src, dst, ICMPV6, message, 2)


def datagram(
    src: IPv4Address | IPv6Address, dst: IPv4Address | IPv6Address, payload: bytes, *, sport: int, dport: int
) -> bytes:
    """Return a UDP datagram with its checksum."""
    return _summed(src, dst, UDP, struct.pack("!4H", sport, dport, 8 + len(payload), 0) + payload, 6)


def _summed(
    src: IPv4Address | IPv6Address, dst: IPv4Address | IPv6Address, protocol: int, message: bytes, at: int
) -> bytes:
    """Return an upper layer's message with its checksum at an offset."""
    pseudo = src.packed + dst.packed + struct.pack("!II", len(message), protocol)
    blank = message[:at] + bytes(2) + message[at + 2 :]
    return blank[:at] + checksum(pseudo + blank).to_bytes(2, "big") + blank[at + 2 :]


def solicitation(
    src_mac: str, src: IPv6Address, target: IPv6Address, *, options: bytes = b"", hops: int = 255, code: int = 0
) -> bytes:
    """Return the frame of a neighbour solicitation to the target's multicast group."""
    group = IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + target.packed[-3:])
    mac = "33:33:" + group.packed[-4:].hex(":")
    message = icmp6(src, group, bytes((135, code)) + bytes(6) + target.packed + options)
    return eth(mac, src_mac, ETH_P_IPV6, ipv6(src, group, message, next_header=ICMPV6, hops=hops))


def source_option(mac: str) -> bytes:
    """Return the option of a solicitation that has the sender's MAC."""
    return bytes((1, 1)) + mac_bytes(mac)


def arp(operation: int, dst: str, src: str, sender: tuple[str, IPv4Address], target: tuple[str, IPv4Address]) -> bytes:
    """Return the frame of a request (1) or a reply (2); `sender` and `target` are those of the message."""
    pairs = b"".join(mac_bytes(mac) + address.packed for mac, address in (sender, target))
    return eth(dst, src, ETH_P_ARP, struct.pack("!HHBBH", 1, ETH_P_IP, 6, 4, operation) + pairs)


def advertisement(dst_mac: str, mac: str, target: IPv6Address, asker: IPv6Address) -> bytes:
    """Return the frame that answers a solicitation of `asker`: the router with this MAC has the target's address."""
    body = bytes((136, 0, 0, 0, 0xE0, 0, 0, 0)) + target.packed + bytes((2, 1)) + mac_bytes(mac)
    packet = ipv6(target, asker, icmp6(target, asker, body), next_header=ICMPV6, hops=255)
    return eth(dst_mac, mac, ETH_P_IPV6, packet)


def vxlan(identity: int, inner: bytes) -> bytes:
    """Return the payload of a datagram that carries a frame with this VNI."""
    return struct.pack("!II", 0x08000000, identity << 8) + inner
