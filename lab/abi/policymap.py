"""Keys and values of policy maps (bpf/lib/policy.h).

They are checked against the BTF of our own objects, like lab.abi.layouts; the port is in network order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Self

POLICY_STATIC_PREFIX, POLICY_FULL_PREFIX = 40, 64
"""Prefix lengths of a policy_key for any protocol and port, and of a complete one."""

POLICY_KEY = struct.Struct("<IIBB2s")
POLICY_ENTRY = struct.Struct("<2sBB4xQQ")
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

    identity: int
    egress: bool
    protocol: int = 0
    port: int = 0

    def pack(self) -> bytes:
        # A wildcard is not part of the prefix. There is no key with a port and without a protocol.
        length = POLICY_FULL_PREFIX if self.port else POLICY_STATIC_PREFIX + (8 if self.protocol else 0)
        port = self.port.to_bytes(2, "big")
        return POLICY_KEY.pack(length, self.identity, _EGRESS if self.egress else 0, self.protocol, port)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        _, identity, flags, protocol, port = POLICY_KEY.unpack_from(data)
        return cls(identity, bool(flags & _EGRESS), protocol, int.from_bytes(port, "big"))

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


def unpack_entries(items: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[PolicyKey, PolicyEntry]]:
    """Yield the keys and values of a policy map."""
    return ((PolicyKey.unpack(key), PolicyEntry.unpack(value)) for key, value in items)


POLICY_ENTRY_ALLOW = PolicyEntry().pack()
"""A packed value that allows everything its key matches, with counters at zero."""
