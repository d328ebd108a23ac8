"""Keys and values of the datapath's maps: the C structs of bpf/lib as Python values, and their enumerations.

Sizes and offsets are those of Cilium's reference commit (bpf/lib/common.h, bpf/lib/maps.h);
tests/bpf/test_layouts.py compares them with the BTF of our own objects. Numbers are little endian; addresses and ports
are in network order. `KNOWN` has the names of the fields in all releases: lab.abi.tables finds by the BTF of a map
which of them it has, and where.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import ClassVar, Self

from datapath.build.nodemacros import mac_bytes
from lab.abi.record import Fields, Known, Values

FAMILY_IPV4, FAMILY_IPV6 = 1, 2
"""Address family in a key (bpf/lib/common.h, enum family)."""

ENDPOINT_F_HOST = 1
"""The endpoint is the host (bpf/lib/eps.h)."""

IPCACHE_STATIC_PREFIX = 32
"""Bits of an ipcache_key between prefixlen and the address; every prefix includes them."""

NO_TUNNEL = IPv4Address(0)
"""Tunnel endpoint of an address that is reached without a tunnel."""

ENDPOINT_KEY = struct.Struct("<16sBBBx")
ENDPOINT_INFO = struct.Struct("<I2xHI4x6s2x6s2x16x")
IPCACHE_KEY = struct.Struct("<IHBB16s")
REMOTE_ENDPOINT_INFO = struct.Struct("<I4sHBx")
TUNNEL_KEY = struct.Struct("<16sBB2x")
TUNNEL_VALUE = struct.Struct("<16sBBH")
METRICS_KEY = struct.Struct("<BB6x")
METRICS_VALUE = struct.Struct("<QQ")
HITS_KEY = struct.Struct("<IHBx")
LPM_V4_KEY, LPM_V6_KEY, LPM_VAL = struct.Struct("<I4s"), struct.Struct("<I16s"), struct.Struct("<B")


class Program(IntEnum):
    """Programs that count their packets in reloadlab_hits (bpf/lib/hits.h, enum program_id)."""

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
    XDP_ENTRY = 96
    IPV4_XDP = 97
    IPV6_XDP = 98


HIT_MIXED_LOADS = 0x80
"""Added to the number of a program in reloadlab_hits: a program of another load called it (bpf/lib/hits.h)."""


class MetricDirection(IntEnum):
    """Directions of cilium_metrics (bpf/lib/metrics.h, enum metric_dir)."""

    INGRESS = 1
    EGRESS = 2
    SERVICE = 3


def direction_name(number: int) -> str:
    """Return the name of a direction of cilium_metrics; the number itself if it has none."""
    return next((each.name.lower() for each in MetricDirection if each == number), str(number))


def family_of(address: IPv4Address | IPv6Address) -> int:
    """Return the number of an address family in keys."""
    return FAMILY_IPV4 if address.version == 4 else FAMILY_IPV6


def cidr_key(network: IPv4Network | IPv6Network) -> bytes:
    """Return the key of a prefix in the maps of the prefilter."""
    packed = LPM_V4_KEY if network.version == 4 else LPM_V6_KEY
    return packed.pack(network.prefixlen, network.network_address.packed)


def address_of(packed: bytes, family: int) -> IPv4Address | IPv6Address:
    """Return the address in 16 bytes of a key, of which IPv4 has the first four."""
    return IPv4Address(packed[:4]) if family == FAMILY_IPV4 else IPv6Address(packed)


@dataclass(frozen=True, slots=True)
class EndpointKey:
    """Key of cilium_lxc."""

    SIZE: ClassVar[int] = ENDPOINT_KEY.size
    KNOWN: ClassVar[Known] = Known.of("ip=ip6/ip family", idle="ip4 pad pad1 pad2 pad3 key cluster_id")

    address: IPv4Address | IPv6Address

    def pack(self) -> bytes:
        return ENDPOINT_KEY.pack(self.address.packed, family_of(self.address), 0, 0)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        packed, family, *_ = ENDPOINT_KEY.unpack_from(data)
        return cls(address_of(packed, family))

    def values(self) -> Values:
        return {"ip": self.address.packed, "family": family_of(self.address)}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(address_of(fields.raw("ip"), fields.number("family")))


def endpoint_key(address: IPv4Address | IPv6Address) -> bytes:
    """Return the key of an address in cilium_lxc, as our own sources have it."""
    return EndpointKey(address).pack()


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """Value of cilium_lxc. `mac` is the pod's, `node_mac` the host side's; None (for the host) is packed as zeros.

    `sec_id` is the identity, 0 for the host; the reference commit does not have it here.
    """

    SIZE: ClassVar[int] = ENDPOINT_INFO.size
    KNOWN: ClassVar[Known] = Known.of(
        "ifindex lxc_id flags mac node_mac", optional="sec_id", idle="unused hole parent_ifindex pad"
    )

    ifindex: int
    lxc_id: int
    flags: int
    mac: str | None
    node_mac: str | None
    sec_id: int = 0

    def pack(self) -> bytes:
        return ENDPOINT_INFO.pack(self.ifindex, self.lxc_id, self.flags, _mac(self.mac), _mac(self.node_mac))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        ifindex, lxc_id, flags, mac, node_mac = ENDPOINT_INFO.unpack_from(data)
        return cls(ifindex, lxc_id, flags, _mac_text(mac), _mac_text(node_mac))

    def values(self) -> Values:
        return {
            "ifindex": self.ifindex,
            "lxc_id": self.lxc_id,
            "flags": self.flags,
            "mac": _mac(self.mac),
            "node_mac": _mac(self.node_mac),
            "sec_id": self.sec_id,
        }

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(
            ifindex=fields.number("ifindex"),
            lxc_id=fields.number("lxc_id"),
            flags=fields.number("flags"),
            mac=_mac_text(fields.raw("mac")[:6]),
            node_mac=_mac_text(fields.raw("node_mac")[:6]),
            sec_id=fields.number("sec_id"),
        )


def _mac(text: str | None) -> bytes:
    return mac_bytes(text) if text is not None else bytes(6)


def _mac_text(packed: bytes) -> str | None:
    return packed.hex(":") if any(packed) else None


@dataclass(frozen=True, slots=True)
class IpcacheKey:
    """Key of cilium_ipcache: the network of `length` bits that begins with `address`."""

    SIZE: ClassVar[int] = IPCACHE_KEY.size
    KNOWN: ClassVar[Known] = Known.of(
        "prefixlen=lpm_key/prefixlen family ip=ip6/ip", idle="ip4 pad1 pad4 pad5 pad6 cluster_id variation"
    )

    address: IPv4Address | IPv6Address
    length: int

    def pack(self) -> bytes:
        prefix = IPCACHE_STATIC_PREFIX + self.length
        return IPCACHE_KEY.pack(prefix, 0, 0, family_of(self.address), self.address.packed)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        prefix, _, _, family, packed = IPCACHE_KEY.unpack_from(data)
        return cls(address_of(packed, family), prefix - IPCACHE_STATIC_PREFIX)

    def values(self) -> Values:
        prefix = IPCACHE_STATIC_PREFIX + self.length
        return {"prefixlen": prefix, "family": family_of(self.address), "ip": self.address.packed}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        address = address_of(fields.raw("ip"), fields.number("family"))
        return cls(address, fields.number("prefixlen") - IPCACHE_STATIC_PREFIX)


def ipcache_key(address: IPv4Address | IPv6Address, length: int) -> bytes:
    """Return the key of a network of `length` bits in cilium_ipcache, as our own sources have it."""
    return IpcacheKey(address, length).pack()


@dataclass(frozen=True, slots=True)
class RemoteEndpointInfo:
    """Value of cilium_ipcache. `tunnel_endpoint` is the node to which the tunnel leads, 0.0.0.0 for none."""

    SIZE: ClassVar[int] = REMOTE_ENDPOINT_INFO.size
    KNOWN: ClassVar[Known] = Known.of(
        "sec_identity tunnel_endpoint key",
        optional="node_id flag_has_tunnel_ep",
        idle="pad pad2 variation flag_skip_tunnel flag_ipv6_tunnel_ep flag_remote_cluster",
    )

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

    def values(self) -> Values:
        return {
            "sec_identity": self.sec_identity,
            "tunnel_endpoint": self.tunnel_endpoint.packed,
            "node_id": self.node_id,
            "key": self.key,
            "flag_has_tunnel_ep": int(self.tunnel_endpoint != NO_TUNNEL),
        }

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        endpoint = IPv4Address(fields.raw("tunnel_endpoint")[:4])
        return cls(fields.number("sec_identity"), endpoint, fields.number("node_id"), fields.number("key"))


@dataclass(frozen=True, slots=True)
class TunnelKey:
    """Key of cilium_tunnel_map: a pod network, which its first address names."""

    SIZE: ClassVar[int] = TUNNEL_KEY.size
    KNOWN: ClassVar[Known] = Known.of("ip=ip6/ip family", idle="ip4 pad pad1 pad2 pad3 cluster_id variation")

    network: IPv4Address | IPv6Address

    def pack(self) -> bytes:
        return TUNNEL_KEY.pack(self.network.packed, family_of(self.network), 0)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        packed, family, _ = TUNNEL_KEY.unpack_from(data)
        return cls(address_of(packed, family))

    def values(self) -> Values:
        return {"ip": self.network.packed, "family": family_of(self.network)}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(address_of(fields.raw("ip"), fields.number("family")))


@dataclass(frozen=True, slots=True)
class TunnelValue:
    """Value of cilium_tunnel_map: the node that has the pod network."""

    SIZE: ClassVar[int] = TUNNEL_VALUE.size
    KNOWN: ClassVar[Known] = Known.of(
        "ip=ip6/ip family key", optional="node_id", idle="ip4 pad pad1 pad2 pad3 variation"
    )

    node: IPv4Address
    key: int = 0
    node_id: int = 0

    def pack(self) -> bytes:
        return TUNNEL_VALUE.pack(self.node.packed, FAMILY_IPV4, self.key, self.node_id)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        node, _, key, node_id = TUNNEL_VALUE.unpack_from(data)
        return cls(IPv4Address(node[:4]), key, node_id)

    def values(self) -> Values:
        return {"ip": self.node.packed, "family": FAMILY_IPV4, "key": self.key, "node_id": self.node_id}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(IPv4Address(fields.raw("ip")[:4]), fields.number("key"), fields.number("node_id"))


@dataclass(frozen=True, slots=True)
class MetricsKey:
    """Key of cilium_metrics: reason and direction. From 1.16 on each place in the source has its own, else 0."""

    SIZE: ClassVar[int] = METRICS_KEY.size
    KNOWN: ClassVar[Known] = Known.of("reason dir", optional="line file", idle="pad reserved")

    reason: int
    dir: int
    line: int = 0
    file: int = 0

    def pack(self) -> bytes:
        return METRICS_KEY.pack(self.reason, self.dir)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        reason, direction = METRICS_KEY.unpack_from(data)
        return cls(reason, direction & 3)

    def values(self) -> Values:
        return {"reason": self.reason, "dir": self.dir, "line": self.line, "file": self.file}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(fields.number("reason"), fields.number("dir"), fields.number("line"), fields.number("file"))


@dataclass(frozen=True, slots=True)
class MetricsValue:
    """Value of cilium_metrics: packets, and their length in bytes."""

    SIZE: ClassVar[int] = METRICS_VALUE.size
    KNOWN: ClassVar[Known] = Known.of("count length=bytes")

    count: int
    length: int

    def pack(self) -> bytes:
        return METRICS_VALUE.pack(self.count, self.length)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*METRICS_VALUE.unpack_from(data))

    def values(self) -> Values:
        return {"count": self.count, "length": self.length}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(fields.number("count"), fields.number("length"))

    def __add__(self, other: MetricsValue) -> MetricsValue:
        return MetricsValue(self.count + other.count, self.length + other.length)


@dataclass(frozen=True, slots=True)
class HitsKey:
    """Key of reloadlab_hits: a program of one load. `source` is the endpoint id of a pod, 0 for host, overlay and XDP.

    `program` is a number of Program; HIT_MIXED_LOADS is added for packets that another load's program handed over.
    """

    SIZE: ClassVar[int] = HITS_KEY.size

    generation: int
    source: int
    program: int

    def pack(self) -> bytes:
        return HITS_KEY.pack(self.generation, self.source, self.program)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*HITS_KEY.unpack_from(data))
