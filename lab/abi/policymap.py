"""Keys and values of policy maps (bpf/lib/policy.h).

They are checked against the BTF of our own objects, like lab.abi.layouts; the port is in network order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Self

from lab.abi.record import Fields, Known, Values

POLICY_STATIC_PREFIX = 40
"""Prefix length of a policy_key for any protocol and port."""

PROTOCOL_PREFIX, PORT_PREFIX = 8, 24
"""Bits of a key's prefix behind the static ones: with a protocol, with a port as well (LPM_*_PREFIX_BITS)."""

POLICY_KEY = struct.Struct("<IIBB2s")
POLICY_ENTRY = struct.Struct("<2sBB4xQQ")
POLICY_STATS_KEY, POLICY_STATS_VALUE = struct.Struct("<HxBIBB2s"), struct.Struct("<QQ")
_EGRESS, _WILDCARDS, _WILDCARD_PORT = 1, 0b110, 0b100


class PolicyMatch(IntEnum):
    """Kind of policy entry that decided on a packet (bpf/lib/policy.h, enum policy_match)."""

    NONE = 0
    L3_ONLY = 1
    L3_L4 = 2
    L4_ONLY = 3
    ALL = 4
    L3_PROTO = 5
    PROTO_ONLY = 6


@dataclass(frozen=True, slots=True, order=True)
class PolicyKey:
    """Key of a policy map: identity, direction, protocol and port; 0 is a wildcard."""

    SIZE: ClassVar[int] = POLICY_KEY.size
    KNOWN: ClassVar[Known] = Known.of(
        "prefixlen=lpm_key/prefixlen sec_label egress protocol dport", idle="pad variation"
    )

    identity: int
    egress: bool
    protocol: int = 0
    port: int = 0

    def pack(self) -> bytes:
        port = self.port.to_bytes(2, "big")
        length = POLICY_STATIC_PREFIX + self.prefix
        return POLICY_KEY.pack(length, self.identity, _EGRESS if self.egress else 0, self.protocol, port)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        _, identity, flags, protocol, port = POLICY_KEY.unpack_from(data)
        return cls(identity, bool(flags & _EGRESS), protocol, int.from_bytes(port, "big"))

    @property
    def prefix(self) -> int:
        """Bits of protocol and port that count. There is no key with a port and without a protocol."""
        return PORT_PREFIX if self.port else PROTOCOL_PREFIX if self.protocol else 0

    def values(self) -> Values:
        return {
            "prefixlen": POLICY_STATIC_PREFIX + self.prefix,
            "sec_label": self.identity,
            "egress": int(self.egress),
            "protocol": self.protocol,
            "dport": self.port.to_bytes(2, "big"),
        }

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        port = int.from_bytes(fields.raw("dport"), "big")
        return cls(fields.number("sec_label"), bool(fields.number("egress")), fields.number("protocol"), port)

    def covers(self, other: PolicyKey) -> bool:
        """Tell whether this key matches every packet that `other` matches."""
        return self.egress == other.egress and all(mine in (0, theirs) for mine, theirs in self._parts(other))

    def meet(self, other: PolicyKey) -> PolicyKey | None:
        """Return the key that matches exactly what both match; None if no packet does."""
        parts = self._parts(other)
        if self.egress != other.egress or any(mine and theirs and mine != theirs for mine, theirs in parts):
            return None
        identity, protocol, port = (mine or theirs for mine, theirs in parts)
        return PolicyKey(identity, self.egress, protocol, port)

    def _parts(self, other: PolicyKey) -> tuple[tuple[int, int], ...]:
        return (self.identity, other.identity), (self.protocol, other.protocol), (self.port, other.port)

    def entry(self, *, deny: bool) -> PolicyEntry:
        """Return a value for this key, with the wildcards of the key and counters at zero."""
        return PolicyEntry(deny=deny, wildcards=not self.protocol, any_port=bool(self.protocol) and not self.port)


def policy_key_any(*, egress: bool, identity: int = 0) -> bytes:
    """Return the key for any protocol and port of an identity; identity 0 is any identity."""
    return PolicyKey(identity, egress).pack()


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """Value of a policy map; `length` is in bytes.

    `wildcards`: the entry matches any protocol and port; `any_port`: it matches any port of its protocol.
    """

    SIZE: ClassVar[int] = POLICY_ENTRY.size
    KNOWN: ClassVar[Known] = Known.of(
        "deny proxy_port auth_type",
        optional="wildcard_protocol wildcard_dport lpm_prefix_length packets length=bytes",
        idle="reserved pad pad1 pad2 variation has_explicit_auth_type proxy_port_priority cookie",
        # Without, an entry would match any protocol and port.
        either=("wildcard_protocol wildcard_dport", "lpm_prefix_length"),
    )

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

    def values(self) -> Values:
        return {
            "deny": int(self.deny),
            "proxy_port": self.proxy_port.to_bytes(2, "big"),
            "auth_type": self.auth_type,
            "wildcard_protocol": int(self.wildcards),
            "wildcard_dport": int(self.wildcards or self.any_port),
            # From 1.16 on the program asks for this instead.
            "lpm_prefix_length": 0 if self.wildcards else PROTOCOL_PREFIX if self.any_port else PORT_PREFIX,
            "packets": self.packets,
            "length": self.length,
        }

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        if "lpm_prefix_length" in fields:
            prefix = fields.number("lpm_prefix_length")
            wildcards, any_port = prefix == 0, prefix == PROTOCOL_PREFIX
        else:
            wildcards = bool(fields.number("wildcard_protocol"))
            any_port = not wildcards and bool(fields.number("wildcard_dport"))
        return cls(
            deny=bool(fields.number("deny")),
            wildcards=wildcards,
            proxy_port=int.from_bytes(fields.raw("proxy_port"), "big"),
            auth_type=fields.number("auth_type"),
            packets=fields.number("packets"),
            length=fields.number("length"),
            any_port=any_port,
        )


@dataclass(frozen=True, slots=True)
class PolicyStatsKey:
    """Key of cilium_policystats, which from 1.19 on counts for all endpoints what their entries decide.

    Our own sources have no such map: it is packed as in 1.19.
    """

    SIZE: ClassVar[int] = POLICY_STATS_KEY.size
    KNOWN: ClassVar[Known] = Known.of("endpoint_id prefix_len sec_label egress protocol dport", idle="pad pad1")

    endpoint_id: int
    rule: PolicyKey

    def pack(self) -> bytes:
        _, identity, flags, protocol, port = POLICY_KEY.unpack(self.rule.pack())
        return POLICY_STATS_KEY.pack(self.endpoint_id, self.rule.prefix, identity, flags, protocol, port)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        endpoint_id, _, identity, flags, protocol, port = POLICY_STATS_KEY.unpack_from(data)
        rule = PolicyKey(identity, bool(flags & _EGRESS), protocol, int.from_bytes(port, "big"))
        return cls(endpoint_id, rule)

    def values(self) -> Values:
        rule = {name: value for name, value in self.rule.values().items() if name != "prefixlen"}
        return {"endpoint_id": self.endpoint_id, "prefix_len": self.rule.prefix, **rule}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(fields.number("endpoint_id"), PolicyKey.of_fields(fields))


@dataclass(frozen=True, slots=True)
class PolicyStats:
    """Value of cilium_policystats; `length` is in bytes."""

    SIZE: ClassVar[int] = POLICY_STATS_VALUE.size
    KNOWN: ClassVar[Known] = Known.of("packets length=bytes")

    packets: int
    length: int

    def pack(self) -> bytes:
        return POLICY_STATS_VALUE.pack(self.packets, self.length)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*POLICY_STATS_VALUE.unpack_from(data))

    def values(self) -> Values:
        return {"packets": self.packets, "length": self.length}

    @classmethod
    def of_fields(cls, fields: Fields) -> Self:
        return cls(fields.number("packets"), fields.number("length"))

    def __add__(self, other: PolicyStats) -> PolicyStats:
        return PolicyStats(self.packets + other.packets, self.length + other.length)


POLICY_ENTRY_ALLOW = PolicyEntry().pack()
"""A packed value that allows everything its key matches, with counters at zero."""
