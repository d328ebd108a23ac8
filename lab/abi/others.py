"""Keys and values of maps that our own sources lack: node ids, authentication, the L2 responder, rate limits.

They are packed and read by the fields that the kernel knows of a map, and by nothing else (lab.abi.tables.OfOthers).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar, Self

from lab.abi.layouts import address_of, family_of
from lab.abi.record import Fields, Known, Values


@dataclass(frozen=True, slots=True)
class NodeKey:
    """Key of cilium_node_map: an address of a node on the underlay."""

    KNOWN: ClassVar[Known] = Known.of("ip=ip6/ip family", idle="ip4 pad1 pad2 pad4 pad5 pad6")

    address: IPv4Address | IPv6Address

    def values(self) -> Values:
        return {"ip": self.address.packed, "family": family_of(self.address)}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(address_of(fields.raw("ip"), fields.number("family")))


@dataclass(frozen=True, slots=True)
class NodeValue:
    """Value of cilium_node_map: the id of the node, 0 for the local one; `spi` is that of IPsec, since 1.16."""

    KNOWN: ClassVar[Known] = Known.of("id", optional="spi", idle="pad", scalar="id")

    id: int
    spi: int = 0

    def values(self) -> Values:
        return {"id": self.id, "spi": self.spi}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(fields.number("id"), fields.number("spi"))


@dataclass(frozen=True, slots=True)
class AuthKey:
    """Key of cilium_auth_map: two identities and the node of the other one, by a way of authentication."""

    KNOWN: ClassVar[Known] = Known.of("local_sec_label remote_sec_label remote_node_id auth_type", idle="pad")

    local: int
    remote: int
    node_id: int
    auth_type: int

    def values(self) -> Values:
        return {
            "local_sec_label": self.local,
            "remote_sec_label": self.remote,
            "remote_node_id": self.node_id,
            "auth_type": self.auth_type,
        }

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        names = ("local_sec_label", "remote_sec_label", "remote_node_id", "auth_type")
        return cls(*map(fields.number, names))


@dataclass(frozen=True, slots=True)
class AuthInfo:
    """Value of cilium_auth_map: when it ends, since 1970 in units of 512 ns (bpf/lib/utime.h)."""

    KNOWN: ClassVar[Known] = Known.of("expiration")

    expiration: int

    def values(self) -> Values:
        return {"expiration": self.expiration}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(fields.number("expiration"))


@dataclass(frozen=True, slots=True)
class L2ResponderKey:
    """Key of cilium_l2_responder_v4: an address that is announced on an interface."""

    KNOWN: ClassVar[Known] = Known.of("ip4 ifindex")

    address: IPv4Address
    ifindex: int

    def values(self) -> Values:
        return {"ip4": self.address.packed, "ifindex": self.ifindex}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(IPv4Address(fields.raw("ip4")), fields.number("ifindex"))


@dataclass(frozen=True, slots=True)
class L2ResponderStats:
    """Value of cilium_l2_responder_v4: the answers to ARP requests."""

    KNOWN: ClassVar[Known] = Known.of("responses_sent")

    responses: int = 0

    def values(self) -> Values:
        return {"responses_sent": self.responses}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(fields.number("responses_sent"))


@dataclass(frozen=True, slots=True)
class RateLimitKey:
    """Key of cilium_ratelimit: what is limited (`usage`, 0 before 1.17), and of which interface if it is by that."""

    KNOWN: ClassVar[Known] = Known.of("ifindex=netdev_idx/key", optional="usage")

    ifindex: int
    usage: int = 0

    def values(self) -> Values:
        return {"ifindex": self.ifindex, "usage": self.usage}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(fields.number("ifindex"), fields.number("usage"))


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Value of cilium_ratelimit: a bucket with so many tokens, last filled at this time in nanoseconds since boot."""

    KNOWN: ClassVar[Known] = Known.of("last_topup tokens")

    last_topup: int
    tokens: int

    def values(self) -> Values:
        return {"last_topup": self.last_topup, "tokens": self.tokens}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(fields.number("last_topup"), fields.number("tokens"))


@dataclass(frozen=True, slots=True)
class RateLimitMetricsKey:
    """Key of cilium_ratelimit_metrics: what is limited."""

    KNOWN: ClassVar[Known] = Known.of("usage")

    usage: int

    def values(self) -> Values:
        return {"usage": self.usage}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(fields.number("usage"))


@dataclass(frozen=True, slots=True)
class RateLimitMetrics:
    """Value of cilium_ratelimit_metrics: what was left out because there was no token."""

    KNOWN: ClassVar[Known] = Known.of("dropped")

    dropped: int

    def values(self) -> Values:
        return {"dropped": self.dropped}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(fields.number("dropped"))
