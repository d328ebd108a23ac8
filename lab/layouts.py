"""Keys and values of the datapath's maps: the C structs of bpf/lib as Python values, and the numbers that go into them.

Sizes and offsets are compared with the BTF of our own objects by tests/bpf/test_layouts.py; they are those of Cilium's
reference commit (bpf/lib/common.h, bpf/lib/maps.h). Everything is little endian but addresses and ports, which lie as
they go over the wire.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar, Self

from datapath.nodemacros import mac_bytes

FAMILY_IPV4, FAMILY_IPV6 = 1, 2
"""How a key names the family of its address (bpf/lib/common.h, enum family)."""

ENDPOINT_F_HOST = 1
"""The endpoint stands for the host (bpf/lib/eps.h)."""

IPCACHE_STATIC_PREFIX = 32
"""Bits of an ipcache_key between prefixlen and the address; they count as part of every prefix."""

POLICY_STATIC_PREFIX, POLICY_FULL_PREFIX = 40, 64
"""Prefix lengths of a policy_key that ends behind the direction (any protocol and port), and of a whole one."""

NO_TUNNEL = IPv4Address(0)
"""A tunnel endpoint that is none: the address is reached without a tunnel."""

ENDPOINT_KEY = struct.Struct("<16sBBBx")
ENDPOINT_INFO = struct.Struct("<I2xHI4x6s2x6s2x16x")
IPCACHE_KEY = struct.Struct("<IHBB16s")
REMOTE_ENDPOINT_INFO = struct.Struct("<I4sHBx")
TUNNEL_KEY = struct.Struct("<16sBB2x")
TUNNEL_VALUE = struct.Struct("<16sBBH")
POLICY_KEY = struct.Struct("<IIBB2s")
POLICY_ENTRY = struct.Struct("<2sBB4xQQ")
METRICS_KEY = struct.Struct("<BB6x")
METRICS_VALUE = struct.Struct("<QQ")
CT_TUPLE4 = struct.Struct("<4s4s2s2sBB")
CT_TUPLE6 = struct.Struct("<16s16s2s2sBB")
CT_ENTRY = struct.Struct("<QQQQIHHHBBIII")
NOTIFY_HEADER = struct.Struct("<BBHIIHH")
DROP_NOTIFY = struct.Struct("<16sIIIHBbI")
TRACE_NOTIFY = struct.Struct("<16sIIHBBI16s")
POLICY_VERDICT_NOTIFY = struct.Struct("<16sIiHBB4x")
HITS_KEY = struct.Struct("<IHBx")
HITS_VALUE = struct.Struct("<Q")

_EGRESS, _WILDCARDS, _WILDCARD_PORT = 1, 0b110, 0b100


class Program(IntEnum):
    """Who counts in reloadlab_hits (bpf/lib/hits.h, enum program_id)."""

    FROM_CONTAINER = 1
    TO_CONTAINER = 2
    HANDLE_POLICY = 3
    LXC_ARP = 4
    LXC_ICMP6_NS = 5
    IPV4_FROM_LXC = 6
    IPV6_FROM_LXC = 7
    IPV4_POLICY = 8
    IPV6_POLICY = 9
    IPV4_TO_ENDPOINT = 10
    IPV6_TO_ENDPOINT = 11
    IPV4_CT_EGRESS = 12
    IPV6_CT_EGRESS = 13
    IPV4_FROM_LXC_CONT = 14
    IPV6_FROM_LXC_CONT = 15
    IPV4_CT_INGRESS = 16
    IPV6_CT_INGRESS = 17
    IPV4_CT_INGRESS_POLICY_ONLY = 18
    IPV6_CT_INGRESS_POLICY_ONLY = 19
    TO_HOST = 32
    FROM_HOST = 33
    FROM_NETDEV = 34
    TO_NETDEV = 35
    IPV4_FROM_HOST = 36
    IPV6_FROM_HOST = 37
    IPV4_FROM_NETDEV = 38
    IPV6_FROM_NETDEV = 39
    HANDLE_LXC_TRAFFIC = 40
    IPV4_TO_HOST_POLICY = 41
    IPV6_TO_HOST_POLICY = 42
    FROM_OVERLAY = 64
    TO_OVERLAY = 65
    IPV4_FROM_OVERLAY = 66
    IPV6_FROM_OVERLAY = 67


class Direction(IntEnum):
    """Directions of cilium_metrics (bpf/lib/metrics.h, enum metric_dir)."""

    INGRESS = 1
    EGRESS = 2
    SERVICE = 3


class ConnState(IntEnum):
    """What connection tracking says of a packet (bpf/lib/common.h, enum ct_status); the reason in a trace."""

    NEW = 0
    ESTABLISHED = 1
    REPLY = 2
    RELATED = 3
    REOPENED = 4
    UNTRACKED = 5


class PolicyMatch(IntEnum):
    """What the key of the rule names that decided (bpf/lib/policy.h, enum policy_match)."""

    NONE = 0
    L3_ONLY = 1
    L3_L4 = 2
    L4_ONLY = 3
    ALL = 4
    L3_PROTO = 5
    PROTO_ONLY = 6


class TracePoint(IntEnum):
    """Where a packet was seen (bpf/lib/trace.h, enum trace_point)."""

    TO_LXC = 0
    TO_PROXY = 1
    TO_HOST = 2
    TO_STACK = 3
    TO_OVERLAY = 4
    FROM_LXC = 5
    FROM_PROXY = 6
    FROM_HOST = 7
    FROM_STACK = 8
    FROM_OVERLAY = 9
    FROM_NETWORK = 10
    TO_NETWORK = 11


NOTIFY_DROP, NOTIFY_TRACE, NOTIFY_POLICY_VERDICT = 1, 4, 5
"""Types of messages in cilium_events (bpf/lib/events.h, enum notify_type)."""

TUPLE_F_OUT, TUPLE_F_IN = 0, 1
"""Whose entry it is in a map of connections: of who sent the first packet, of who received it."""

REASON_FORWARDED, REASON_PLAINTEXT = 0, 3
"""Reasons of cilium_metrics that are no drops."""

DROP_REASONS: Mapping[int, str] = {
    132: "Invalid source ip",
    133: "Policy denied",
    134: "Invalid packet",
    135: "CT: Truncated or invalid header",
    137: "CT: Unknown L4 protocol",
    139: "Unsupported L3 protocol",
    140: "Missed tail call",
    141: "Error writing to packet",
    147: "Error retrieving tunnel key",
    151: "Stale or unroutable IP",
    153: "Error while correcting L3 checksum",
    155: "CT: Map insertion failed",
    156: "Invalid IPv6 extension header",
    157: "IP fragmentation not supported",
    160: "No tunnel/encapsulation endpoint (datapath BUG!)",
    166: "Unsupported L2 protocol",
    171: "Invalid identity",
    175: "First logical datagram fragment not found",
    181: "Policy denied by denylist",
    184: "Invalid TC buffer",
}
"""Those that our programs can count, in the words of Hubble (pkg/monitor/api/drop.go)."""


def family_of(address: IPv4Address | IPv6Address) -> int:
    """Return how keys name the family of an address."""
    return FAMILY_IPV4 if address.version == 4 else FAMILY_IPV6


def endpoint_key(address: IPv4Address | IPv6Address) -> bytes:
    """Return the key of an address in cilium_lxc."""
    return ENDPOINT_KEY.pack(address.packed, family_of(address), 0, 0)


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """Value of cilium_lxc. `mac` is the pod's, `node_mac` the host side's; None (for the host) is all zero."""

    SIZE: ClassVar[int] = ENDPOINT_INFO.size

    ifindex: int
    lxc_id: int
    flags: int
    mac: str | None
    node_mac: str | None

    def pack(self) -> bytes:
        macs = (mac_bytes(mac) if mac is not None else bytes(6) for mac in (self.mac, self.node_mac))
        return ENDPOINT_INFO.pack(self.ifindex, self.lxc_id, self.flags, *macs)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        ifindex, lxc_id, flags, *macs = ENDPOINT_INFO.unpack_from(data)
        return cls(ifindex, lxc_id, flags, *(mac.hex(":") if any(mac) else None for mac in macs))


def ipcache_key(address: IPv4Address | IPv6Address, length: int) -> bytes:
    """Return the key of a network of `length` bits in cilium_ipcache."""
    return IPCACHE_KEY.pack(IPCACHE_STATIC_PREFIX + length, 0, 0, family_of(address), address.packed)


@dataclass(frozen=True, slots=True)
class RemoteEndpointInfo:
    """Value of cilium_ipcache. `tunnel_endpoint` is the node behind the tunnel, 0.0.0.0 for none."""

    SIZE: ClassVar[int] = REMOTE_ENDPOINT_INFO.size

    sec_identity: int
    tunnel_endpoint: IPv4Address = NO_TUNNEL
    node_id: int = 0
    key: int = 0

    def pack(self) -> bytes:
        return REMOTE_ENDPOINT_INFO.pack(self.sec_identity, self.tunnel_endpoint.packed, self.node_id, self.key)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        identity, endpoint, node_id, key = REMOTE_ENDPOINT_INFO.unpack_from(data)
        return cls(identity, IPv4Address(endpoint), node_id, key)


def tunnel_key(network: IPv4Address | IPv6Address) -> bytes:
    """Return the key of a pod network in cilium_tunnel_map, by its first address."""
    return TUNNEL_KEY.pack(network.packed, family_of(network), 0)


@dataclass(frozen=True, slots=True)
class TunnelValue:
    """Value of cilium_tunnel_map: the node that has the pod network."""

    SIZE: ClassVar[int] = TUNNEL_VALUE.size

    node: IPv4Address
    key: int = 0
    node_id: int = 0

    def pack(self) -> bytes:
        return TUNNEL_VALUE.pack(self.node.packed, FAMILY_IPV4, self.key, self.node_id)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        node, _, key, node_id = TUNNEL_VALUE.unpack_from(data)
        return cls(IPv4Address(node[:4]), key, node_id)


@dataclass(frozen=True, slots=True, order=True)
class PolicyKey:
    """Key of a policy map: who, which way, what; 0 stands for any identity, protocol, port."""

    SIZE: ClassVar[int] = POLICY_KEY.size

    identity: int
    egress: bool
    protocol: int = 0
    port: int = 0

    def pack(self) -> bytes:
        # What is not said is not part of the prefix; a port without a protocol there is not.
        length = POLICY_FULL_PREFIX if self.port else POLICY_STATIC_PREFIX + (8 if self.protocol else 0)
        port = self.port.to_bytes(2, "big")
        return POLICY_KEY.pack(length, self.identity, _EGRESS if self.egress else 0, self.protocol, port)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        _, identity, flags, protocol, port = POLICY_KEY.unpack_from(data)
        return cls(identity, bool(flags & _EGRESS), protocol, int.from_bytes(port, "big"))

    def covers(self, other: PolicyKey) -> bool:
        """Tell whether all packets that `other` matches are matched by this."""
        return self.egress == other.egress and all(mine in (0, theirs) for mine, theirs in self._parts(other))

    def meet(self, other: PolicyKey) -> PolicyKey | None:
        """Return the key that matches what both match; None if there is no such packet."""
        parts = self._parts(other)
        if self.egress != other.egress or any(mine and theirs and mine != theirs for mine, theirs in parts):
            return None
        identity, protocol, port = (mine or theirs for mine, theirs in parts)
        return PolicyKey(identity, self.egress, protocol, port)

    def _parts(self, other: PolicyKey) -> tuple[tuple[int, int], ...]:
        return (self.identity, other.identity), (self.protocol, other.protocol), (self.port, other.port)

    def entry(self, *, deny: bool) -> PolicyEntry:
        """Return the value that belongs to this key, with the wildcards that it has and counters at zero."""
        return PolicyEntry(deny=deny, wildcards=not self.protocol, any_port=bool(self.protocol) and not self.port)


def policy_key_any(*, egress: bool, identity: int = 0) -> bytes:
    """Return the key of the rule for every protocol and port of an identity, 0 for every identity."""
    return PolicyKey(identity, egress).pack()


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """Value of a policy map. `wildcards`: the rule holds for any protocol and port, `any_port`: for any port of its
    protocol; `length` counts bytes.
    """

    SIZE: ClassVar[int] = POLICY_ENTRY.size

    deny: bool = False
    wildcards: bool = True
    proxy_port: int = 0
    auth_type: int = 0
    packets: int = 0
    length: int = 0
    any_port: bool = False

    def pack(self) -> bytes:
        flags = self.deny | (_WILDCARDS if self.wildcards else 0) | (_WILDCARD_PORT if self.any_port else 0)
        port = self.proxy_port.to_bytes(2, "big")
        return POLICY_ENTRY.pack(port, flags, self.auth_type, self.packets, self.length)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        port, flags, auth_type, packets, length = POLICY_ENTRY.unpack_from(data)
        wildcards = flags & _WILDCARDS
        return cls(
            deny=bool(flags & 1),
            wildcards=wildcards == _WILDCARDS,
            proxy_port=int.from_bytes(port, "big"),
            auth_type=auth_type,
            packets=packets,
            length=length,
            any_port=wildcards == _WILDCARD_PORT,
        )


POLICY_ENTRY_ALLOW = PolicyEntry().pack()
"""Lets everything pass that its key matches; counters at zero."""


@dataclass(frozen=True, slots=True)
class MetricsKey:
    """Key of cilium_metrics: why, and in which direction."""

    SIZE: ClassVar[int] = METRICS_KEY.size

    reason: int
    dir: int

    def pack(self) -> bytes:
        return METRICS_KEY.pack(self.reason, self.dir)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        reason, direction = METRICS_KEY.unpack_from(data)
        return cls(reason, direction & 3)


@dataclass(frozen=True, slots=True)
class MetricsValue:
    """Value of cilium_metrics on one CPU: packets, and their length in bytes."""

    SIZE: ClassVar[int] = METRICS_VALUE.size

    count: int
    length: int

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*METRICS_VALUE.unpack_from(data))


@dataclass(frozen=True, slots=True)
class HitsKey:
    """Key of reloadlab_hits: which load of which program. `source` is the pod's id, 0 for host and overlay."""

    SIZE: ClassVar[int] = HITS_KEY.size

    generation: int
    source: int
    program: int

    def pack(self) -> bytes:
        return HITS_KEY.pack(self.generation, self.source, self.program)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*HITS_KEY.unpack_from(data))


@dataclass(frozen=True, slots=True)
class CtTuple:
    """Key of a map of connections: the first packet's addresses and ports, and whose entry it is.

    `source` and `sport` are those of who began. In the key the addresses are exchanged and the ports are not.
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
        """Read a key of either family; its length says which."""
        v4 = len(data) == CT_TUPLE4.size
        daddr, saddr, dport, sport, protocol, flags = (CT_TUPLE4 if v4 else CT_TUPLE6).unpack(data)
        address = IPv4Address if v4 else IPv6Address
        ports = int.from_bytes(sport, "big"), int.from_bytes(dport, "big")
        return cls(address(daddr), address(saddr), *ports, protocol, flags)


@dataclass(frozen=True, slots=True)
class CtEntry:
    """Value of a map of connections; `lifetime` is when it ends, in seconds of the monotonic clock.

    "rx" is what the side received whose entry it is, "tx" what it sent; lengths are bytes.
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
        """The flags that are set, by their names in struct ct_entry."""
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


@dataclass(frozen=True, slots=True)
class NotifyHeader:
    """What every message of cilium_events begins with; `len_cap` bytes of the packet follow the message."""

    SIZE: ClassVar[int] = NOTIFY_HEADER.size

    type: int
    subtype: int
    source: int
    hash: int
    len_orig: int
    len_cap: int
    version: int = 1

    def pack(self) -> bytes:
        return NOTIFY_HEADER.pack(
            self.type, self.subtype, self.source, self.hash, self.len_orig, self.len_cap, self.version
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*NOTIFY_HEADER.unpack_from(data))


@dataclass(frozen=True, slots=True)
class DropNotify:
    """A packet that was dropped; the header's subtype is the reason."""

    SIZE: ClassVar[int] = DROP_NOTIFY.size

    header: NotifyHeader
    src_label: int
    dst_label: int
    dst_id: int
    line: int
    file: int
    ext_error: int
    ifindex: int

    def pack(self) -> bytes:
        labels = self.src_label, self.dst_label, self.dst_id
        return DROP_NOTIFY.pack(self.header.pack(), *labels, self.line, self.file, self.ext_error, self.ifindex)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        header, *rest = DROP_NOTIFY.unpack_from(data)
        return cls(NotifyHeader.unpack(header), *rest)


@dataclass(frozen=True, slots=True)
class TraceNotify:
    """A packet that was seen; the header's subtype is the TracePoint, `reason` the ConnState."""

    SIZE: ClassVar[int] = TRACE_NOTIFY.size

    header: NotifyHeader
    src_label: int
    dst_label: int
    dst_id: int
    reason: int
    ifindex: int

    def pack(self) -> bytes:
        labels = self.src_label, self.dst_label, self.dst_id
        return TRACE_NOTIFY.pack(self.header.pack(), *labels, self.reason, 0, self.ifindex, bytes(16))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        header, src_label, dst_label, dst_id, reason, _, ifindex, _ = TRACE_NOTIFY.unpack_from(data)
        return cls(NotifyHeader.unpack(header), src_label, dst_label, dst_id, reason, ifindex)


@dataclass(frozen=True, slots=True)
class PolicyVerdictNotify:
    """What the policy said to a packet: `verdict` 0, or the reason of the drop, negative."""

    SIZE: ClassVar[int] = POLICY_VERDICT_NOTIFY.size

    header: NotifyHeader
    remote_label: int
    verdict: int
    dst_port: int
    protocol: int
    dir: int
    ipv6: bool
    match_type: int

    def pack(self) -> bytes:
        bits = self.dir | self.ipv6 << 2 | self.match_type << 3
        head = self.header.pack()
        return POLICY_VERDICT_NOTIFY.pack(head, self.remote_label, self.verdict, self.dst_port, self.protocol, bits)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        header, remote, verdict, port, protocol, bits = POLICY_VERDICT_NOTIFY.unpack_from(data)
        head = NotifyHeader.unpack(header)
        return cls(head, remote, verdict, port, protocol, bits & 3, bool(bits >> 2 & 1), bits >> 3 & 7)
