"""Files of captured packets (pcapng, draft-ietf-opsawg-pcapng): what Wireshark, tshark and tcpdump open."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ETHERNET, RAW_IP = 1, 101
"""Link types (LINKTYPE_ETHERNET, LINKTYPE_RAW)."""

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER = 0x1A2B3C4D
_UNKNOWN_LENGTH = (1 << 64) - 1
_COMMENT, _IF_NAME, _IF_TSRESOL, _EPB_FLAGS = 1, 2, 9, 2
_NANOSECONDS = 9
_INBOUND, _OUTBOUND = 1, 2


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface on which packets were captured, each cut off at `snaplen` bytes."""

    name: str
    snaplen: int
    linktype: int = ETHERNET


@dataclass(frozen=True, slots=True)
class CapturedPacket:
    """A packet as it passed an interface: `time_ns` since 1970, `length` on the wire, `data` as far as captured."""

    time_ns: int
    interface: Interface
    outgoing: bool
    length: int
    data: bytes
    comment: str = ""


def encode(packets: Iterable[CapturedPacket]) -> bytes:
    """Return a file's content: the packets in their order."""
    interfaces: dict[Interface, int] = {}
    blocks = [_block(_SECTION, struct.pack("<IHHQ", _BYTE_ORDER, 1, 0, _UNKNOWN_LENGTH), [])]
    for packet in packets:
        if packet.interface not in interfaces:
            interfaces[packet.interface] = len(interfaces)
            blocks.append(_interface(packet.interface))
        blocks.append(_packet(packet, interfaces[packet.interface]))
    return b"".join(blocks)


def _interface(interface: Interface) -> bytes:
    body = struct.pack("<HHI", interface.linktype, 0, interface.snaplen)
    return _block(_INTERFACE, body, [(_IF_NAME, interface.name.encode()), (_IF_TSRESOL, bytes([_NANOSECONDS]))])


def _packet(packet: CapturedPacket, number: int) -> bytes:
    high, low = packet.time_ns >> 32, packet.time_ns & 0xFFFFFFFF
    body = struct.pack("<5I", number, high, low, len(packet.data), packet.length) + _padded(packet.data)
    options = [(_EPB_FLAGS, struct.pack("<I", _OUTBOUND if packet.outgoing else _INBOUND))]
    if packet.comment:
        options.append((_COMMENT, packet.comment.encode()))
    return _block(_PACKET, body, options)


def _block(kind: int, body: bytes, options: Sequence[tuple[int, bytes]]) -> bytes:
    """Return a block: type, length, body, options and the length once more."""
    coded = b"".join(struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options)
    if options:
        coded += bytes(4)
    length = 12 + len(body) + len(coded)
    return struct.pack("<II", kind, length) + body + coded + struct.pack("<I", length)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
