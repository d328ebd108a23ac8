"""ICMP echo as bytes: requests, and what a raw socket receives (RFC 792, RFC 4443)."""

from __future__ import annotations

import socket
import struct

ECHO = struct.Struct("!BBHHH")
"""Type, code, checksum, identifier, sequence number."""

REQUEST_AND_REPLY = {4: (8, 0), 6: (128, 129)}
"""The types of echo requests and replies by IP version."""

_ICMP_FILTER, _ICMP6_FILTER, _SOL_RAW = 1, 1, 255


def echo_request(version: int, ident: int, number: int, payload: bytes) -> bytes:
    """Return an echo request."""
    kind = REQUEST_AND_REPLY[version][0]
    packet = ECHO.pack(kind, 0, 0, ident, number) + payload
    # The kernel fills in the checksum of ICMPv6, which covers addresses that only it knows (RFC 3542, 3.1).
    return packet if version == 6 else ECHO.pack(kind, 0, _checksum(packet), ident, number) + payload


def message(family: int, data: bytes) -> bytes:
    """Return the ICMP message in what a raw socket has received: that of IPv4 has the IP header before it."""
    return data[(data[0] & 15) * 4 :] if family == socket.AF_INET else data


def only_replies(sock: socket.socket) -> None:
    """Let a raw socket receive nothing but echo replies."""
    if sock.family == socket.AF_INET:
        # Bits of the types that are blocked (uapi/linux/icmp.h).
        sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~(1 << REQUEST_AND_REPLY[4][1]) & 0xFFFFFFFF))
        return
    blocked = bytearray(b"\xff" * 32)
    word, bit = divmod(REQUEST_AND_REPLY[6][1], 32)
    struct.pack_into("=I", blocked, 4 * word, ~(1 << bit) & 0xFFFFFFFF)
    sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(blocked))


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    words: tuple[int, ...] = struct.unpack(f"!{len(data) // 2}H", data)
    return 0xFFFF - sum(words) % 0xFFFF
