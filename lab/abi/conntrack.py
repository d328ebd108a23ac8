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

from lab.abi.record import Fields, Known, Values

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

    SIZE: ClassVar[int] = CT_TUPLE4.size
    KNOWN: ClassVar[Known] = Known.of("daddr saddr dport sport nexthdr flags", fixed={"daddr": 0})

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

    def values(self) -> Values:
        return {
            "daddr": self.source.packed,
            "saddr": self.destination.packed,
            "dport": self.dport.to_bytes(2, "big"),
            "sport": self.sport.to_bytes(2, "big"),
            "nexthdr": self.protocol,
            "flags": self.flags,
        }

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        source, destination = (fields.raw(name) for name in ("daddr", "saddr"))
        address = IPv4Address if len(source) == 4 else IPv6Address
        sport, dport = (int.from_bytes(fields.raw(name), "big") for name in ("sport", "dport"))
        numbers = fields.number("nexthdr"), fields.number("flags")
        return cls(address(source), address(destination), sport, dport, *numbers)


@dataclass(frozen=True, slots=True)
class CtEntry:
    """Value of a connection tracking map; `lifetime` is its expiry in seconds of the monotonic clock.

    "rx" counts what the side of the entry received, "tx" what it sent; lengths are in bytes. From 1.16 on an entry has
    `packets` and `length` instead, of both directions together; they are None before.
    """

    SIZE: ClassVar[int] = CT_ENTRY.size
    FLAGS: ClassVar[Mapping[str, int]] = {"rx_closing": 1, "tx_closing": 2, "seen_non_syn": 16, "from_tunnel": 1024}
    KNOWN: ClassVar[Known] = Known.of(
        "lifetime rx_closing tx_closing seen_non_syn from_tunnel tx_flags_seen rx_flags_seen src_sec_id "
        "last_tx_report last_rx_report",
        optional="rx_packets rx_length=rx_bytes tx_packets tx_length=tx_bytes packets length=bytes",
        idle="nat46 unused_nat46 lb_loopback node_port proxy_redirect dsr dsr_internal from_l7lb rev_nat_index ifindex "
        "backend_id reserved reserved0 reserved1 reserved2 reserved3 reserved4 reserved5",
        fixed={"lifetime": 32, "rx_closing": 36, "tx_flags_seen": 42, "src_sec_id": 44},
    )

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
    packets: int | None = None
    length: int | None = None

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

    def values(self) -> Values:
        names = ("lifetime", "tx_flags_seen", "rx_flags_seen", "src_sec_id", "last_tx_report", "last_rx_report")
        counters = ("rx_packets", "rx_length", "tx_packets", "tx_length", "packets", "length")
        flags = {name: int(name in self.names) for name in self.FLAGS}
        return {**flags, **{name: getattr(self, name) or 0 for name in (*names, *counters)}}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        names = ("lifetime", "tx_flags_seen", "rx_flags_seen", "src_sec_id", "last_tx_report", "last_rx_report")
        counters = ("rx_packets", "rx_length", "tx_packets", "tx_length", "packets", "length")
        numbers = {name: fields.number(name) for name in (*names, *counters) if name in fields}
        return cls(**numbers, flags=sum(bit for name, bit in cls.FLAGS.items() if fields.number(name)))
