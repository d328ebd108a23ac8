"""Keys and values of the connection tracking maps (bpf/lib/conntrack.h).

They are checked against the BTF of our own objects, like lab.abi.layouts. Addresses and ports are in network order.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar, Self

CT_TUPLE4 = struct.Struct("<4s4s2s2sBB")
CT_TUPLE6 = struct.Struct("<16s16s2s2sBB")
CT_ENTRY = struct.Struct("<QQQQIHHHBBIII")


class ConnState(IntEnum):
    """Result of connection tracking for a packet (bpf/lib/common.h, enum ct_status); the reason in a trace."""

    NEW = 0
    ESTABLISHED = 1
    REPLY = 2
    RELATED = 3
    REOPENED = 4
    UNTRACKED = 5


TUPLE_F_OUT, TUPLE_F_IN = 0, 1
"""Direction of an entry: that of the side which sent the first packet, or of the side which received it."""


@dataclass(frozen=True, slots=True)
class CtTuple:
    """Key of a connection tracking map: addresses and ports of the first packet, and the direction of the entry.

    `source` and `sport` are the initiator's. The packed key has the addresses swapped and the ports not, as in Cilium.
    """

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    sport: int
    dport: int
    protocol: int
    flags: int = TUPLE_F_OUT

    def pack(self) -> bytes:
        layout = CT_TUPLE4 if self.source.version == 4 else CT_TUPLE6
        ports = (port.to_bytes(2, "big") for port in (self.dport, self.sport))
        return layout.pack(self.source.packed, self.destination.packed, *ports, self.protocol, self.flags)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Unpack a key of either family, which its length tells."""
        v4 = len(data) == CT_TUPLE4.size
        daddr, saddr, dport, sport, protocol, flags = (CT_TUPLE4 if v4 else CT_TUPLE6).unpack(data)
        address = IPv4Address if v4 else IPv6Address
        ports = int.from_bytes(sport, "big"), int.from_bytes(dport, "big")
        return cls(address(daddr), address(saddr), *ports, protocol, flags)


@dataclass(frozen=True, slots=True)
class CtEntry:
    """Value of a connection tracking map; `lifetime` is its expiry in seconds of the monotonic clock.

    "rx" counts what the side of the entry received, "tx" what it sent; lengths are in bytes.
    """

    SIZE: ClassVar[int] = CT_ENTRY.size
    FLAGS: ClassVar[Mapping[str, int]] = {"rx_closing": 1, "tx_closing": 2, "seen_non_syn": 16, "from_tunnel": 1024}

    rx_packets: int = 0
    rx_length: int = 0
    tx_packets: int = 0
    tx_length: int = 0
    lifetime: int = 0
    flags: int = 0
    tx_flags_seen: int = 0
    rx_flags_seen: int = 0
    src_sec_id: int = 0
    last_tx_report: int = 0
    last_rx_report: int = 0

    @property
    def names(self) -> frozenset[str]:
        """Names of the set flags, as in struct ct_entry."""
        return frozenset(name for name, bit in self.FLAGS.items() if self.flags & bit)

    def pack(self) -> bytes:
        counters = self.rx_packets, self.rx_length, self.tx_packets, self.tx_length
        seen = self.tx_flags_seen, self.rx_flags_seen
        reports = self.last_tx_report, self.last_rx_report
        return CT_ENTRY.pack(*counters, self.lifetime, self.flags, 0, 0, *seen, self.src_sec_id, *reports)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        *counters, lifetime, flags, _, _, tx_seen, rx_seen, identity, tx, rx = CT_ENTRY.unpack_from(data)
        rx_packets, rx_length, tx_packets, tx_length = counters
        return cls(rx_packets, rx_length, tx_packets, tx_length, lifetime, flags, tx_seen, rx_seen, identity, tx, rx)
